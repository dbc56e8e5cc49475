"""The answer to prompts that are not conversations: text as the model wrote it."""

from __future__ import annotations

import codecs
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence

import msgspec
from msgspec import UNSET

from api.completions.request import CompletionRequest
from api.completions.schema import TextChoice, TextCompletion, TextLogprobs
from api.response import ChunkChoice, TokenLogprob, TopLogprob
from api.turn import Turn

CompletionTurn = Turn[CompletionRequest]
Decode = Callable[[Iterable[int]], str]
"""Token ids -> their text; for prompts that came as ids and are to be repeated."""


async def chunks(turn: CompletionTurn, decode: Decode) -> AsyncGenerator[TextCompletion, None]:
    """Yields the stream: what every choice begins with, its text as it comes, usage if asked for.

    Raises ApiError when the engine fails on the way.
    """
    usage = None if turn.request.include_usage else UNSET
    async for choice in _pieces(turn, decode):
        yield msgspec.structs.replace(_completion(turn, [choice]), usage=usage)
    if turn.request.include_usage:
        yield msgspec.structs.replace(_completion(turn, []), usage=turn.usage)


async def completion(turn: CompletionTurn, decode: Decode) -> TextCompletion:
    """Returns the whole answer. Raises ApiError when the engine fails on the way."""
    pieces: list[list[TextChoice]] = [[] for _ in turn.choices]
    async for choice in _pieces(turn, decode):
        pieces[choice.index].append(choice)
    whole = _completion(turn, [_joined(own) for own in pieces])
    return msgspec.structs.replace(whole, usage=turn.usage)


async def _pieces(turn: CompletionTurn, decode: Decode) -> AsyncGenerator[TextChoice, None]:
    for opening in _openings(turn, decode):
        yield opening
    writers = [LogprobLists(as_ids=turn.request.tokens_as_ids) for _ in turn.choices]
    async for piece in turn.pieces():
        yield _text_choice(piece, writers[piece.index])


def _openings(turn: CompletionTurn, decode: Decode) -> list[TextChoice]:
    """What stands before any sampled token, in index order: the prompt, where it was asked for."""
    request = turn.request
    if not request.echo and not request.return_token_ids:
        return []
    openings = []
    for part, text in zip(turn.parts, request.prompts, strict=True):
        echo = ""
        if request.echo:
            echo = text if isinstance(text, str) else decode(text)
        token_ids = part.prompt.token_ids if request.return_token_ids else UNSET
        openings += [
            TextChoice(
                index=choice.index, text=echo, finish_reason=None, prompt_token_ids=token_ids
            )
            for choice in part.choices
        ]
    return openings


def _text_choice(piece: ChunkChoice, lists: LogprobLists) -> TextChoice:
    assert piece.finish_reason != "tool_calls", "plain text has no calls"
    text = piece.delta.content
    return TextChoice(
        index=piece.index,
        text=text if isinstance(text, str) else "",
        logprobs=None if piece.logprobs is None else lists.of(piece.logprobs.content),
        finish_reason=piece.finish_reason,
        stop_reason=piece.stop_reason,
        token_ids=piece.token_ids,
    )


def _joined(pieces: Sequence[TextChoice]) -> TextChoice:
    """Returns the choice whose pieces these are."""
    first, last = pieces[0], pieces[-1]
    given = [piece.logprobs for piece in pieces if piece.logprobs is not None]
    token_ids = [piece.token_ids for piece in pieces if isinstance(piece.token_ids, list)]
    return TextChoice(
        index=last.index,
        text="".join(piece.text for piece in pieces),
        logprobs=_joined_lists(given) if given else None,
        finish_reason=last.finish_reason,
        stop_reason=last.stop_reason,
        token_ids=[token_id for some in token_ids for token_id in some] if token_ids else UNSET,
        prompt_token_ids=first.prompt_token_ids,
    )


def _joined_lists(parts: Sequence[TextLogprobs]) -> TextLogprobs:
    return TextLogprobs(
        tokens=[token for part in parts for token in part.tokens],
        token_logprobs=[logprob for part in parts for logprob in part.token_logprobs],
        top_logprobs=[top for part in parts for top in part.top_logprobs],
        text_offset=[offset for part in parts for offset in part.text_offset],
    )


def _completion(turn: CompletionTurn, choices: list[TextChoice]) -> TextCompletion:
    return TextCompletion(
        id=turn.id,
        created=turn.created_s,
        model=turn.request.model,
        system_fingerprint=turn.system_fingerprint,
        choices=choices,
    )


class LogprobLists:
    """Writes the log-probabilities of one choice, and keeps count of its characters."""

    def __init__(self, *, as_ids: bool = False) -> None:
        """as_ids: tokens are named by their ids, not by their bytes."""
        self._as_ids = as_ids
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._characters = 0

    def of(self, entries: Sequence[TokenLogprob]) -> TextLogprobs:
        """Returns the lists of the tokens that come next.

        A token in the middle of a character begins where that character will stand.
        """
        offsets = []
        for entry in entries:
            offsets.append(self._characters)
            self._characters += len(self._decoder.decode(bytes(entry.bytes or ())))
        return TextLogprobs(
            tokens=[self._name(entry) for entry in entries],
            token_logprobs=[entry.logprob for entry in entries],
            top_logprobs=[
                {self._name(top): top.logprob for top in entry.top_logprobs}
                | {self._name(entry): entry.logprob}
                for entry in entries
            ],
            text_offset=offsets,
        )

    def _name(self, token: TokenLogprob | TopLogprob) -> str:
        """Returns the token's text, or its bytes in OpenAI's spelling where they are no text."""
        if self._as_ids:
            return token.token
        data = bytes(token.bytes or ())
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
