"""Whether a request is taken: decided before anything is promised, from the last snapshot alone.

    never fits (400)     longer than the window, too many choices
    overload (429)       the queue is full, in requests or in tokens, and this tenant has its share
    deadline (503)       its first token would come too late

The wait is the work ahead over the rate at which work has been leaving the queue, whatever limits
it: compute, pages or slots. Fairness (`scheduler.fairness`) lets a tenant pass those who have more
waiting, so of every other tenant only as much counts as this one will have itself. A tenant below
its share of the queue is taken even when others have filled it; so the queue in tokens never
exceeds twice its limit, and a flood keeps nobody else out.

Who was refused is told when to come back, and a time can only be told if nobody takes the room in
between. So a tenant that was refused once is refused until the queue is well below its limit
(`Gate`): until then it only becomes shorter, at a rate that is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import msgspec

from scheduler.outcome import Refusal

SHORTEST_RETRY_S = 0.05
UNKNOWN_RETRY_S = 1.0
"""Before any rate is known."""
REMEMBERED_REFUSALS = 4096
REOPEN_SHARE = 0.8
"""Of its limits: where a queue that has refused somebody takes their requests again."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a replica can take; fixed once it is ready."""

    max_model_len: int
    """Longest sequence, prompt and output, in tokens."""
    max_queued_requests: int
    """Sequences that may wait."""
    max_queued_tokens: int
    """Prompt tokens that may wait to be computed; a share of it is every tenant's own."""


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """What a request asks for."""

    prompt_tokens: int
    n: int = 1
    tenant: str = ""
    deadline_s: float | None = None
    """Seconds from now in which its first token must come."""


class Load(Protocol):
    """The part of a snapshot that admission reads."""

    @property
    def waiting(self) -> int: ...
    @property
    def backlog_tokens(self) -> int: ...
    @property
    def tenant_backlog_tokens(self) -> Mapping[str, int]: ...
    @property
    def drain_tokens_per_s(self) -> float: ...


class Backlog(msgspec.Struct, frozen=True, kw_only=True):
    """A Load by itself: a snapshot's, and what was taken since (see `after`)."""

    waiting: int = 0
    """Sequences."""
    backlog_tokens: int = 0
    """Prompt tokens still to be computed."""
    tenant_backlog_tokens: dict[str, int] = {}
    """The same by tenant, none that has nothing."""
    drain_tokens_per_s: float = 0.0
    """Recent rate at which backlog became less, as long as there was any; 0: unknown."""


def never_fits(limits: Limits, sizes: Sizes) -> Refusal | None:
    """Returns why a request can never run here, None when it can."""
    tokens, window = sizes.prompt_tokens, limits.max_model_len
    if not tokens:
        return Refusal(400, "invalid_request_error", "the prompt has no tokens", "messages")
    if not 1 <= sizes.n <= limits.max_queued_requests:
        allowed = f"it must be in [1, {limits.max_queued_requests}]"
        return Refusal(400, "invalid_request_error", f"n is {sizes.n}; {allowed}", "n")
    if tokens >= window:
        return Refusal(
            400,
            "context_length_exceeded",
            f"the prompt has {tokens} tokens; at most {window - 1} leave room for an answer in the "
            f"window of {window}",
            "messages",
        )
    return None


def wait_s(load: Load, tenant: str, prompt_tokens: int = 0) -> float | None:
    """Returns the seconds until a tenant's next prompt is computed; None without a rate."""
    if load.drain_tokens_per_s <= 0:
        return None
    own = load.tenant_backlog_tokens.get(tenant, 0) + prompt_tokens
    ahead = sum(min(n, own) for t, n in load.tenant_backlog_tokens.items() if t != tenant)
    return min(own + ahead, load.backlog_tokens + prompt_tokens) / load.drain_tokens_per_s


def refusal(
    load: Load,
    limits: Limits,
    sizes: Sizes,
    *,
    queue_share: float = 1.0,
    deadline_share: float = 1.0,
) -> Refusal | None:
    """Returns why a request is not taken now, None when it is.

    The shares say how much of the queue's limits, and of its deadline, it may use.
    """
    never = never_fits(limits, sizes)
    if never is not None:
        return never
    # A queue without anybody in it takes any request that fits, whatever the shares.
    places = int(queue_share * limits.max_queued_requests)
    if load.waiting and load.waiting + sizes.n > places:
        over = min(load.waiting, load.waiting + sizes.n - places)
        return Refusal(
            429,
            "queue_full",
            f"{load.waiting} sequences are waiting; the limit is {limits.max_queued_requests}",
            retry_after_s=until_drained_s(load, load.backlog_tokens * over / load.waiting),
        )
    tokens = queue_share * limits.max_queued_tokens
    excess = load.backlog_tokens + sizes.prompt_tokens - tokens
    if excess > 0 and load.backlog_tokens:
        others = sum(1 for tenant in load.tenant_backlog_tokens if tenant != sizes.tenant)
        own = load.tenant_backlog_tokens.get(sizes.tenant, 0) + sizes.prompt_tokens
        own_excess = own - tokens / (others + 1)
        if own_excess > 0:
            return Refusal(
                429,
                "backlog_full",
                f"{load.backlog_tokens} prompt tokens are waiting and {sizes.prompt_tokens} more "
                f"would exceed the limit of {limits.max_queued_tokens}",
                retry_after_s=until_drained_s(load, min(excess, load.backlog_tokens)),
            )
    return _late(load, sizes, deadline_share)


class Gate:
    """Admission that keeps its word: who was refused is told how long that stays so.

    No clock, no input or output: the decision follows from the load and from earlier decisions.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._closed: dict[tuple[str, int], None] = {}
        """(tenant, status of its refusal), the longest refused first; bounded."""

    def look(self, load: Load, sizes: Sizes) -> Refusal | None:
        """Returns why a request would be refused now, None when it would be taken."""
        return refusal(
            load,
            self.limits,
            sizes,
            queue_share=self._share(sizes.tenant, 429),
            deadline_share=self._share(sizes.tenant, 503),
        )

    def decide(self, load: Load, sizes: Sizes) -> Refusal | None:
        """Returns why a request is refused; None when it is taken, which opens the gate again."""
        if not load.backlog_tokens and not load.waiting:
            self._closed.clear()
        refused = self.look(load, sizes)
        if refused is None:
            self._closed.pop((sizes.tenant, 429), None)
            if sizes.deadline_s is not None:
                self._closed.pop((sizes.tenant, 503), None)
            return None
        if refused.retry_after_s is None or (sizes.tenant, refused.status) in self._closed:
            return refused
        self._closed[sizes.tenant, refused.status] = None
        if len(self._closed) > REMEMBERED_REFUSALS:
            del self._closed[next(iter(self._closed))]
        return self.look(load, sizes)

    def _share(self, tenant: str, status: int) -> float:
        return REOPEN_SHARE if (tenant, status) in self._closed else 1.0


def after(load: Load, sizes: Sizes) -> Backlog:
    """Returns the load with a request in it: what admission reads until the next snapshot."""
    by_tenant = dict(load.tenant_backlog_tokens)
    by_tenant[sizes.tenant] = by_tenant.get(sizes.tenant, 0) + sizes.prompt_tokens
    return Backlog(
        waiting=load.waiting + sizes.n,
        backlog_tokens=load.backlog_tokens + sizes.prompt_tokens,
        tenant_backlog_tokens=by_tenant,
        drain_tokens_per_s=load.drain_tokens_per_s,
    )


def _late(load: Load, sizes: Sizes, share: float) -> Refusal | None:
    if sizes.deadline_s is None:
        return None
    first_token_s = wait_s(load, sizes.tenant, sizes.prompt_tokens)
    # Alone it takes what it takes: a gate must not stay closed for a request that nobody delays.
    allowed_s = sizes.deadline_s * (share if load.backlog_tokens else 1.0)
    if first_token_s is None or first_token_s <= allowed_s:
        return None
    return Refusal(
        503,
        "deadline_unreachable",
        f"the first token would come in {first_token_s:.1f} s; the deadline is "
        f"{sizes.deadline_s:g} s",
        retry_after_s=max(SHORTEST_RETRY_S, first_token_s - allowed_s),
    )


def until_drained_s(load: Load, tokens: float) -> float:
    """Returns the seconds until the backlog is `tokens` less."""
    if load.drain_tokens_per_s <= 0:
        return UNKNOWN_RETRY_S
    return max(SHORTEST_RETRY_S, tokens / load.drain_tokens_per_s)
