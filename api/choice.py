"""One choice of a request: sampled tokens in, pieces of the answer out."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
from msgspec import UNSET, UnsetType

from api.chat.detokenizer import Detokenizer
from api.chat.events import (
    ContentDelta,
    Event,
    ParseFailure,
    ReasoningDelta,
    ToolArguments,
    ToolCallEnd,
    ToolCallStart,
)
from api.chat.parser import OutputParser
from api.chat.plain import PlainText
from api.chat.stop import StopMatcher
from api.logprobs import LogprobWriter
from api.response import (
    ChoiceLogprobs,
    ChunkChoice,
    Delta,
    FinishReason,
    FunctionDelta,
    ParseError,
    TokenLogprob,
    ToolCallDelta,
)
from engine.messages import Output, TokenLogprobs


class _Token(NamedTuple):
    token_id: int
    start: int
    """Its text begins at this character of the output."""
    logprobs: TokenLogprobs | None


class Choice:
    """Follows one choice from its first token to its finish_reason.

    Streamed and whole answers are made of the same pieces, so they cannot differ. A token's
    logprobs travel with the piece in which its text is first sent, those of markup with the next.
    """

    def __init__(
        self,
        index: int,
        parser: OutputParser | PlainText,
        detokenizer: Detokenizer,
        stops: StopMatcher,
        *,
        in_reasoning: bool,
        end_token_ids: frozenset[int],
        think_end_token_id: int,
        one_call: bool = False,
        logprobs: LogprobWriter | None = None,
        return_token_ids: bool = False,
    ) -> None:
        """in_reasoning: the prompt ended in an open <think>. end_token_ids: end the answer and are
        no part of its text. logprobs: None when they were not asked for. return_token_ids: pieces
        carry the tokens they were made of."""
        self.index = index
        self.completion_tokens = 0
        self.reasoning_tokens = 0
        self.finish_reason: FinishReason | None = None
        self.cut_at: int | None = None
        """Set when the answer ends before the model ended it: the number of tokens it keeps."""
        self.complete_calls: list[int] = []
        """Indexes of the calls the model wrote completely."""
        self._parser = parser
        self._detokenizer = detokenizer
        self._stops = stops
        self._thinking = in_reasoning
        self._in_reasoning = in_reasoning
        self._end_token_ids = end_token_ids
        self._think_end_token_id = think_end_token_id
        self._one_call = one_call
        self._logprobs = logprobs
        self._new_token_ids: list[int] | None = [] if return_token_ids else None
        """Counted, and not yet handed out."""
        self._failure: ParseFailure | None = None
        self._pieces: list[ChunkChoice] = []
        self._unsent: deque[_Token] = deque()
        self._fed_characters = 0
        self._held_by_stops = 0
        self._reasoning_characters = 0
        self._wants_only_text = logprobs is None and not return_token_ids and not stops.watches

    def feed(self, output: Output) -> list[ChunkChoice]:
        """Returns the pieces that `output` settles; the last of all has the finish_reason.

        Tokens after `cut_at` are not counted.
        """
        if self.finish_reason is not None:
            return []
        token_ids = output.token_ids
        if len(token_ids) == 1 and output.finish is None and (piece := self._at_once(token_ids[0])):
            return [piece]
        for position, token_id in enumerate(token_ids):
            self.completion_tokens += 1
            if self._new_token_ids is not None:
                self._new_token_ids.append(token_id)
            is_last = position + 1 == len(token_ids)
            if is_last and output.finish == "stop" and token_id in self._end_token_ids:
                continue
            logprobs = output.logprobs[position] if output.logprobs else None
            self._unsent.append(_Token(token_id, self._fed_characters, logprobs))
            self._parse(self._detokenizer.feed((token_id,)))
            if self.cut_at is not None:
                self._finish()
                return self._take_pieces()
        if output.finish is not None:
            self._parse(self._detokenizer.finish())
            if self.cut_at is None:
                self._report(self._parser.finish(output.finish))
                self._show(self._stops.finish())
                self._held_by_stops = 0
            self._finish()
        return self._take_pieces()

    def _at_once(self, token_id: int) -> ChunkChoice | None:
        """Returns the piece of a token that is plain text and nothing else, as nearly all are: what
        the long way would, at a fifth of its price. None for other tokens; they change nothing."""
        if self._unsent or not self._wants_only_text:
            return None
        text = self._detokenizer.at_once(token_id)
        kind = self._parser.at_once(text) if text else None
        if text is None or kind is None:
            return None
        self.completion_tokens += 1
        self._fed_characters += len(text)
        if kind is ReasoningDelta:
            self.reasoning_tokens += 1
            self._reasoning_characters += len(text)
            return ChunkChoice(self.index, Delta(reasoning_content=text))
        self._in_reasoning = False
        return ChunkChoice(self.index, Delta(content=text))

    def _parse(self, text: str) -> None:
        self._fed_characters += len(text)
        self._report(self._parser.feed(text))

    def _report(self, events: list[Event]) -> None:
        for event in events:
            match event:
                case ReasoningDelta(text=text):
                    self._reasoning_characters += len(text)
                    self._send(Delta(reasoning_content=text))
                case ContentDelta(text=text):
                    self._in_reasoning = False
                    shown = self._stops.feed(text)
                    self._held_by_stops += len(text) - len(shown)
                    self._show(shown)
                    if self._stops.matched is not None:
                        self.cut_at = self.completion_tokens
                        return
                case ToolCallStart(index=index, id=call_id, name=name):
                    self._in_reasoning = False
                    self._show(self._stops.finish())
                    self._held_by_stops = 0
                    function = FunctionDelta("", name)
                    self._send_call(ToolCallDelta(index, function, call_id, "function"))
                case ToolArguments(index=index, text=text):
                    self._send_call(ToolCallDelta(index, FunctionDelta(text)))
                case ToolCallEnd(index=index):
                    self.complete_calls.append(index)
                    if self._one_call:
                        self.cut_at = self.completion_tokens
                        return
                case ParseFailure():
                    self._failure = self._failure or event

    def _show(self, content: str) -> None:
        if content:
            self._send(Delta(content=content))

    def _send_call(self, call: ToolCallDelta) -> None:
        self._send(Delta(tool_calls=[call]))

    def _send(self, delta: Delta) -> None:
        piece = ChunkChoice(self.index, delta, logprobs=self._due_logprobs())
        if self._pieces and (joined := _join(self._pieces[-1], piece)) is not None:
            self._pieces[-1] = joined
        else:
            self._pieces.append(piece)

    def _due_logprobs(self, all_of_them: bool = False) -> ChoiceLogprobs | None:
        """Takes the tokens whose text is settled; returns their logprobs, None if not asked for."""
        border = self._fed_characters - self._parser.held_characters - self._held_by_stops
        due = ChoiceLogprobs()
        reasoning: list[TokenLogprob] = []
        while self._unsent and (all_of_them or self._unsent[0].start < border):
            token = self._unsent.popleft()
            closes = (
                self._thinking
                and token.token_id == self._think_end_token_id
                and token.start == self._reasoning_characters
            )
            if closes:
                self._in_reasoning = False
            in_reasoning = self._in_reasoning or token.start < self._reasoning_characters
            self.reasoning_tokens += in_reasoning
            if self._logprobs is not None and token.logprobs is not None:
                entry = self._logprobs.entry(token.token_id, token.logprobs)
                (reasoning if in_reasoning or closes else due.content).append(entry)
        if reasoning:
            due.reasoning_content = reasoning
        return due if due.content or reasoning else None

    def _finish(self) -> None:
        if self._stops.matched is not None:
            self.finish_reason = "stop"
        elif self.cut_at is not None:
            self.finish_reason = "tool_calls"
        else:
            self.finish_reason = self._parser.finish_reason
        # What a stop string cut off was never sent; the markup of a call was.
        leftover = self._due_logprobs(all_of_them=self._stops.matched is None)
        failure = self._failure
        self._pieces.append(
            ChunkChoice(
                self.index,
                Delta(),
                finish_reason=self.finish_reason,
                logprobs=leftover,
                stop_reason=UNSET if self._stops.matched is None else self._stops.matched,
                parse_error=ParseError(failure.reason, failure.offset) if failure else UNSET,
                incomplete_reasoning=True if self._parser.incomplete_reasoning else UNSET,
            )
        )

    def _take_pieces(self) -> list[ChunkChoice]:
        pieces, self._pieces = self._pieces, []
        if pieces and self._new_token_ids:
            pieces[-1] = msgspec.structs.replace(pieces[-1], token_ids=self._new_token_ids)
            self._new_token_ids = []
        return pieces


class PromptOnly(Choice):
    """A choice without any tokens: the one that the engine samples behind its prompt is dropped."""

    def feed(self, output: Output) -> list[ChunkChoice]:
        """Returns the one piece there is, once the engine has ended the choice."""
        if output.finish is None or self.finish_reason is not None:
            return []
        self.finish_reason = "length"
        token_ids = UNSET if self._new_token_ids is None else self._new_token_ids
        return [ChunkChoice(self.index, Delta(), finish_reason="length", token_ids=token_ids)]


def _join(before: ChunkChoice, after: ChunkChoice) -> ChunkChoice | None:
    """Returns both pieces as one, None when they are of different kinds."""
    first, second = before.delta, after.delta
    if isinstance(first.content, str) and isinstance(second.content, str):
        delta = Delta(content=first.content + second.content)
    elif isinstance(first.reasoning_content, str) and isinstance(second.reasoning_content, str):
        delta = Delta(reasoning_content=first.reasoning_content + second.reasoning_content)
    elif isinstance(first.tool_calls, list) and isinstance(second.tool_calls, list):
        call, more = first.tool_calls[0], second.tool_calls[0]
        if call.id is not UNSET or call.index != more.index or more.id is not UNSET:
            return None
        arguments = call.function.arguments + more.function.arguments
        delta = Delta(tool_calls=[ToolCallDelta(call.index, FunctionDelta(arguments))])
    else:
        return None
    return ChunkChoice(before.index, delta, logprobs=join_logprobs(before.logprobs, after.logprobs))


def join_logprobs(*parts: ChoiceLogprobs | None) -> ChoiceLogprobs | None:
    """Returns the entries of all parts, in order; None when there are none."""
    given = [part for part in parts if part is not None]
    if not given:
        return None
    content = [entry for part in given for entry in part.content]
    reasoning = [entry for part in given for entry in part.reasoning_content or ()]
    return ChoiceLogprobs(content, None, reasoning or UNSET)


def join_token_ids(pieces: Sequence[ChunkChoice]) -> list[int] | UnsetType:
    """Returns the token ids of all pieces, in order; UNSET when they carry none."""
    given = [piece.token_ids for piece in pieces if isinstance(piece.token_ids, list)]
    return [token_id for token_ids in given for token_id in token_ids] if given else UNSET
