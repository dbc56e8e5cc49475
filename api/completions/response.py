"""The answer to prompts that are not conversations: text as the model wrote it."""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import AsyncGenerator, Sequence

import msgspec
from msgspec import UNSET, UnsetType

from api.completions.request import CompletionRequest
from api.completions.schema import TextChoice, TextCompletion, TextLogprobs
from api.logprobs import LogprobWriter
from api.response import ChunkChoice, PromptLogprobs, TokenLogprob, TopLogprob
from api.turn import Turn
from engine.messages import TokenLogprobs

CompletionTurn = Turn[CompletionRequest]


async def chunks(turn: CompletionTurn) -> AsyncGenerator[TextCompletion, None]:
    """Yields the stream: what every choice begins with, its text as it comes, usage if asked for.

    Raises ApiError when the engine fails on the way.
    """
    usage = None if turn.request.include_usage else UNSET
    async for choice in _pieces(turn):
        yield msgspec.structs.replace(_completion(turn, [choice]), usage=usage)
    if turn.request.include_usage:
        yield msgspec.structs.replace(_completion(turn, []), usage=turn.usage)


async def completion(turn: CompletionTurn) -> TextCompletion:
    """Returns the whole answer. Raises ApiError when the engine fails on the way."""
    pieces: list[list[TextChoice]] = [[] for _ in turn.choices]
    async for choice in _pieces(turn):
        pieces[choice.index].append(choice)
    whole = _completion(turn, [_joined(own) for own in pieces])
    return msgspec.structs.replace(whole, usage=turn.usage)


async def _pieces(turn: CompletionTurn) -> AsyncGenerator[TextChoice, None]:
    """What a prompt's choices begin with comes first; where that takes its log-probabilities, when
    they are known: with the first token of its first choice, which need not be the first of all."""
    request = turn.request
    starts = [len(echo) for echo in request.echoes] or [0] * len(turn.parts)
    writers = [
        LogprobLists(as_ids=request.tokens_as_ids, characters=starts[choice.index // request.n])
        for choice in turn.choices
    ]
    scored = request.sampling.prompt_logprobs is not None
    held: dict[int, list[TextChoice]] = {place: [] for place in range(len(turn.parts)) if scored}
    if not scored:
        for place in range(len(turn.parts)):
            for opening in _openings(turn, place):
                yield opening
    async for piece in turn.pieces():
        choice = _text_choice(piece, writers[piece.index])
        place = piece.index // request.n
        if place not in held:
            yield choice
            continue
        held[place].append(choice)
        if turn.parts[place].id in turn.prompt_logprobs:
            # Of a long prompt that takes long enough to be felt by other streams.
            for opening in await asyncio.to_thread(_openings, turn, place):
                yield opening
            for waiting in held.pop(place):
                yield waiting


def _openings(turn: CompletionTurn, place: int) -> list[TextChoice]:
    """What stands before any sampled token of a prompt's choices, in index order: the prompt, and
    what is said of its tokens, where it was asked for."""
    request, part = turn.request, turn.parts[place]
    if not (request.echo or request.return_token_ids or request.prompt_logprobs is not None):
        return []
    token_ids = part.prompt.token_ids
    found, writer = turn.prompt_logprobs.pop(part.id, None), turn.logprobs
    lists: TextLogprobs | None = None
    entries: PromptLogprobs | UnsetType = UNSET
    if found is not None and writer is not None:
        if request.echo and request.sampling.logprobs is not None:
            lists = _prompt_lists(turn, place, found, writer)
        if request.prompt_logprobs is not None:
            entries = writer.prompt(token_ids, found, request.prompt_logprobs)
    return [
        TextChoice(
            index=choice.index,
            text=request.echoes[place] if request.echo else "",
            logprobs=lists,
            finish_reason=None,
            prompt_token_ids=token_ids if request.return_token_ids else UNSET,
            prompt_logprobs=entries,
        )
        for choice in part.choices
    ]


def _prompt_lists(
    turn: CompletionTurn, place: int, found: Sequence[TokenLogprobs], writer: LogprobWriter
) -> TextLogprobs:
    """Returns the lists of an echoed prompt. The begin-of-sentence token that was put before a text
    is in them, too, and begins where the text does."""
    request = turn.request
    first, *others = turn.parts[place].prompt.token_ids
    top = request.sampling.logprobs
    nothing = writer.entry(first, TokenLogprobs(0.0, []))
    entries = [
        writer.entry(token_id, TokenLogprobs(logprobs.logprob, logprobs.top[:top]))
        for token_id, logprobs in zip(others, found, strict=True)
    ]
    added = len(bytes(nothing.bytes or ()).decode(errors="replace"))
    before = added if request.bos and isinstance(request.prompts[place], str) else 0
    lists = LogprobLists(as_ids=request.tokens_as_ids, characters=-before).of([nothing, *entries])
    lists.token_logprobs[0] = lists.top_logprobs[0] = None
    return lists


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
        prompt_logprobs=first.prompt_logprobs,
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

    def __init__(self, *, as_ids: bool = False, characters: int = 0) -> None:
        """as_ids: tokens are named by their ids, not by their bytes. characters: those before the
        first token; below 0 for a start that is not shown."""
        self._as_ids = as_ids
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._characters = characters

    def of(self, entries: Sequence[TokenLogprob]) -> TextLogprobs:
        """Returns the lists of the tokens that come next.

        A token in the middle of a character begins where that character will stand.
        """
        offsets = []
        for entry in entries:
            offsets.append(max(0, self._characters))
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
