"""Messages to prompt tokens, in which text from outside can never become a control token.

Our own markers become token ids by look-up; everything else, the caller's text above all, is
encoded by a tokenizer that knows no special strings.
"""

import json
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import Tokenizer

from api.chat.markers import (
    ASSISTANT,
    BOS,
    CONTROL_MARKERS,
    DSML,
    EOS,
    THINK_END,
    THINK_START,
    USER,
)
from api.chat.messages import Message, PromptError, is_unicode
from api.chat.rendering import Segment, render
from api.chat.template import Template
from scheduler.retention import Span, SpanKind

__all__ = ["Encoder", "Prompt", "Segment", "TokenizerError"]


class Prompt(msgspec.Struct, frozen=True):
    """An encoded conversation. ``spans`` cover ``token_ids`` in order and without gaps."""

    token_ids: list[int]
    spans: list[Span]
    in_reasoning: bool
    """A ``<think>`` is open at the prompt's end: the first generated token is reasoning."""


class TokenizerError(ValueError):
    """The tokenizer lacks a special string, or plain text can reach one of its control tokens."""


class Encoder:
    """Encodes conversations for one checkpoint. Safe to share between threads.

    Raises TokenizerError when the vocabulary lacks a special string of the format, or when plain
    text could become one.
    """

    def __init__(self, tokenizer: Tokenizer, template: Template) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self._control_ids = _control_ids(tokenizer)
        self._plain = _without_added_tokens(tokenizer)
        self.bos_token_id = self._control_ids[BOS]
        self.eos_token_id = self._control_ids[EOS]
        self.think_start_token_id = self._control_ids[THINK_START]
        self.think_end_token_id = self._control_ids[THINK_END]
        self.dsml_token_id = self._control_ids[DSML]
        self.stop_token_ids = (
            self.eos_token_id,
            self._control_ids[USER],
            self._control_ids[ASSISTANT],
            self.bos_token_id,
        )
        """Tokens that end a generation: EOS by training; the others never belong in an answer."""

    @classmethod
    def from_folder(cls, folder: Path | str) -> "Encoder":
        """Returns the encoder of a checkpoint folder: ``tokenizer.json`` and ``encoding/``."""
        tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
        return cls(tokenizer, Template.from_folder(folder))

    def encode(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        response_schema: Mapping[str, Any] | None = None,
        thinking: bool,
        started: Message | None = None,
        one_pass: bool = False,
    ) -> Prompt:
        """Returns the tokens of the prompt that :meth:`render` writes, with their spans.

        ``one_pass`` encodes the rendered string at once, as the reference encoder does, so that
        special strings in caller text become control tokens: for comparisons only, of messages
        whose written tokens nobody knows.

        Raises PromptError for text that is not Unicode, and what :meth:`render` raises.
        """
        segments = self.render(
            messages,
            tools=tools,
            response_schema=response_schema,
            thinking=thinking,
            started=started,
        )
        token_ids: list[int] = []
        spans: list[Span] = []
        if one_pass:
            _append_text(self.tokenizer, segments, token_ids, spans)
        else:
            run: list[Segment] = []
            for segment in segments:
                if segment.control or segment.token_ids:
                    _append_text(self._plain, run, token_ids, spans)
                    run.clear()
                    token_ids.extend(segment.token_ids or (self._control_ids[segment.text],))
                    _append_span(spans, len(token_ids), segment.kind)
                else:
                    run.append(segment)
            _append_text(self._plain, run, token_ids, spans)
        thinks = [s.text for s in segments if s.control and s.text in (THINK_START, THINK_END)]
        return Prompt(token_ids, spans, thinks[-1:] == [THINK_START])

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        response_schema: Mapping[str, Any] | None = None,
        thinking: bool,
        started: Message | None = None,
    ) -> list[Segment]:
        """Returns the prompt as segments; see :func:`api.chat.rendering.render`."""
        return render(
            messages,
            self.template,
            tools=tools,
            response_schema=response_schema,
            thinking=thinking,
            started=started,
        )

    def encode_text(self, text: str) -> list[int]:
        """Returns the tokens of plain text; special strings in it are text like any other.

        Raises PromptError for text that is not Unicode.
        """
        if not is_unicode(text):
            raise PromptError("The text holds an unpaired surrogate.", "messages")
        (encoding,) = self._plain.encode_batch([text], add_special_tokens=False)
        return list(encoding.ids)

    def encode_raw(self, text: str | Sequence[int], *, bos: bool = True) -> Prompt:
        """Returns the prompt that is `text` and nothing else, or the token ids it already is.

        bos: text, not ids, begins with the begin-of-sentence token.
        """
        if isinstance(text, str):
            token_ids = [self.bos_token_id] * bos + self.encode_text(text)
        else:
            token_ids = list(text)
        spans: list[Span] = []
        _append_span(spans, len(token_ids), "stable")
        return Prompt(token_ids, spans, in_reasoning=False)


def _append_text(
    tokenizer: Tokenizer, run: Sequence[Segment], token_ids: list[int], spans: list[Span]
) -> None:
    """Encodes adjacent segments together, since BPE merges across their borders.

    A token belongs to the segment that holds its first character.
    """
    if not run:
        return
    text = "".join(segment.text for segment in run)
    if not is_unicode(text):
        raise PromptError("The text holds an unpaired surrogate.", "messages")
    # encode() would hold the interpreter's lock for seconds on a long text, and so every stream.
    (encoding,) = tokenizer.encode_batch([text], add_special_tokens=False)
    start_tokens = len(token_ids)
    token_ids.extend(encoding.ids)
    offsets = encoding.offsets if len({segment.kind for segment in run}) > 1 else []
    border = 0
    for segment in run:
        border += len(segment.text)
        tokens = bisect_left(offsets, border, key=lambda offset: offset[0])
        _append_span(spans, start_tokens + tokens, segment.kind)
    _append_span(spans, len(token_ids), run[-1].kind)


def _append_span(spans: list[Span], end: int, kind: SpanKind) -> None:
    """Extends the spans to the token position ``end``; neighbours of one kind become one."""
    start = spans[-1].end if spans else 0
    if end <= start:
        return
    if spans and spans[-1].kind == kind:
        spans[-1] = Span(spans[-1].start, end, kind)
    else:
        spans.append(Span(start, end, kind))


def _control_ids(tokenizer: Tokenizer) -> dict[str, int]:
    ids: dict[str, int] = {}
    for marker in CONTROL_MARKERS:
        token_id = tokenizer.token_to_id(marker)
        if token_id is None:
            raise TokenizerError(f"the vocabulary lacks {marker!r}")
        found = tokenizer.encode(marker, add_special_tokens=False).ids
        if found != [token_id]:
            raise TokenizerError(f"{marker!r} encodes as {found}, not as its one token {token_id}")
        ids[marker] = token_id
    return ids


def _without_added_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """Returns a copy of the tokenizer for which every special string is ordinary text.

    Turning off "special" parsing would not do: DSML, and in some checkpoints the think and role
    strings too, are added tokens without that flag.
    """
    state = json.loads(tokenizer.to_str())
    added = {token["content"]: token["id"] for token in state["added_tokens"]}
    state["added_tokens"] = []
    state["post_processor"] = None
    plain = Tokenizer.from_str(json.dumps(state, ensure_ascii=False))
    for content, token_id in added.items():
        if token_id in plain.encode(content, add_special_tokens=False).ids:
            raise TokenizerError(f"plain text reaches the control token {content!r} ({token_id})")
    return plain
