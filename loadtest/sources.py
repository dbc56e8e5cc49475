"""Where a simulation's requests come from, and a trace as the first such place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, Protocol

from loadtest.tokens import Run, TokenIds, cut
from loadtest.traces import BLOCK_TOKENS, TraceRequest

Kind = Literal["trace", "first", "user", "tool"]
"""Of a trace; the first message of a conversation; a later one; the result of a tool."""


class Request(NamedTuple):
    """One request: its prompt, and what the model will say to it."""

    id: str
    kind: Kind
    tenant: str
    prompt: tuple[Run, ...]
    prompt_tokens: int
    output: tuple[Run, ...]
    """One run."""
    output_tokens: int


class TurnEnd(NamedTuple):
    """What the API tells the scheduler when a turn has ended."""

    why: Literal["tool_calls", "answer"]
    flip_token: int | None
    next_prefix: tuple[Run, ...] | None = None


class Arrival(NamedTuple):
    at_s: float
    request: Request


class Source(Protocol):
    """Makes requests, and more of them when some end."""

    @property
    def requests(self) -> int | None:
        """How many there will be; None when nobody knows."""
        ...

    @property
    def working_set_tokens(self) -> int:
        """Tokens that a later request may begin with, as far as is known; 0: nothing is."""
        ...

    @property
    def asked_again_tokens(self) -> int:
        """Those of them that the next requests will begin with."""
        ...

    def begin(self) -> Iterator[Arrival]:
        """Yields what comes in any case, in order."""
        ...

    def ended(self, request: Request, now_s: float) -> tuple[TurnEnd | None, Sequence[Arrival]]:
        """Returns how the turn ended (None: nobody tells), and what comes of it."""
        ...

    def refused(self, request: Request, now_s: float, retry_after_s: float) -> Sequence[Arrival]:
        """Returns what the client does about it."""
        ...


class TraceSource:
    """A trace's requests, `speed` times as fast as they came. Who is refused does not come back.

    What a request's answer said is not in a trace: later prompts that contain it have other blocks
    for it, so answers are never found in the cache.
    """

    def __init__(self, trace: Sequence[TraceRequest], *, speed: float = 1.0, tenants: int = 1):
        self.trace, self.speed, self.tenants = trace, speed, tenants
        self._ids = TokenIds()

    @property
    def requests(self) -> int | None:
        return len(self.trace)

    @property
    def working_set_tokens(self) -> int:
        return 0

    @property
    def asked_again_tokens(self) -> int:
        return 0

    def begin(self) -> Iterator[Arrival]:
        blocks: dict[int, int] = {}
        for number, one in enumerate(self.trace):
            tokens = [blocks.get(block) or self._block(blocks, block) for block in one.blocks]
            prompt: Sequence[Run] = [(token, BLOCK_TOKENS) for token in tokens]
            prompt = cut(prompt or [(self._ids.fresh(), one.prompt_tokens)], one.prompt_tokens)
            output_tokens = max(1, one.output_tokens)
            output = ((self._ids.fresh(), output_tokens),)
            tenant = one.tenant or (str(number % self.tenants) if self.tenants > 1 else "")
            request = Request(
                str(number),
                "trace",
                tenant,
                tuple(prompt),
                one.prompt_tokens,
                output,
                output_tokens,
            )
            yield Arrival(one.arrival_s / self.speed, request)

    def _block(self, blocks: dict[int, int], block: int) -> int:
        token = blocks[block] = self._ids.fresh()
        return token

    def ended(self, request: Request, now_s: float) -> tuple[TurnEnd | None, Sequence[Arrival]]:
        return None, ()

    def refused(self, request: Request, now_s: float, retry_after_s: float) -> Sequence[Arrival]:
        return ()
