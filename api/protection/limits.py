"""What one key can take of the server: requests at a time, tokens a minute, and room."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence, Sized
from contextvars import ContextVar

from starlette.requests import Request

from api.errors import ApiError, invalid
from api.protection.keys import KeyFile, KeyLimits

BUSY_RETRY_S = 1.0
MAX_SALT_CHARACTERS = 512
"""A salt lives as long as the pages and turns it is kept with."""
MAX_LOGIT_BIASES = 1024
MAX_STOP_TOKEN_IDS = 128
MINUTE_S = 60.0

_charge: ContextVar[Callable[[int], None] | None] = ContextVar("charge", default=None)


def charge_tokens(tokens: int) -> None:
    """Takes what an answer used, prompt included, from the key that the running request came with.

    Without keys nobody is charged.
    """
    charge = _charge.get()
    if charge is not None:
        charge(tokens)


class Usage:
    """What each tenant has in flight, and what is left of its tokens.

    Tokens are a bucket of one minute's worth that fills steadily. A request is let in while there
    is anything in it, and what it used is taken afterwards, when it is known: a bucket in debt
    lets nobody in until it is paid.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._in_flight: dict[str, int] = {}
        self._buckets: dict[str, tuple[float, float]] = {}
        """Tenant -> tokens used and not yet made up for, and when that was so."""

    def enter(self, tenant: str, limits: KeyLimits) -> None:
        """Counts a request in. Raises ApiError(429) with the seconds to wait."""
        running = self._in_flight.get(tenant, 0)
        if limits.requests is not None and running >= limits.requests:
            raise ApiError(
                429,
                f"This key has {running} requests in flight; its limit is {limits.requests}.",
                code="too_many_requests",
                retry_after=BUSY_RETRY_S,
            )
        if limits.tokens_per_minute is not None:
            used = self._used(tenant, limits.tokens_per_minute)
            if used >= limits.tokens_per_minute:
                excess = used - limits.tokens_per_minute + 1
                raise ApiError(
                    429,
                    f"This key's {limits.tokens_per_minute} tokens a minute are used up.",
                    code="token_rate_exceeded",
                    retry_after=excess * MINUTE_S / limits.tokens_per_minute,
                )
        self._in_flight[tenant] = running + 1

    def leave(self, tenant: str) -> None:
        """Counts a request out."""
        left = self._in_flight[tenant] - 1
        if left:
            self._in_flight[tenant] = left
        else:
            del self._in_flight[tenant]

    def charge(self, tenant: str, tokens: int, limits: KeyLimits) -> None:
        """Takes what a request used."""
        if limits.tokens_per_minute is not None and tokens:
            used = self._used(tenant, limits.tokens_per_minute) + tokens
            self._buckets[tenant] = (used, self._clock())

    def _used(self, tenant: str, tokens_per_minute: int) -> float:
        used, at_s = self._buckets.get(tenant, (0.0, 0.0))
        return max(0.0, used - (self._clock() - at_s) * tokens_per_minute / MINUTE_S)


def key_check(keys: KeyFile, usage: Usage) -> Callable[[Request], AsyncIterator[None]]:
    """Returns a dependency that lets in who has a key, within its limits.

    It notes the tenant for the routes, and holds the request's place until the last byte is out.
    """

    async def check(request: Request) -> AsyncIterator[None]:
        key = keys.find(presented_key(request))
        if key is None:
            raise ApiError(
                401,
                "A valid API key is needed in the Authorization header.",
                code="invalid_api_key",
            )
        usage.enter(key.tenant, key.limits)
        request.state.tenant = key.tenant
        request.state.priority = key.limits.priority
        # The task that answers this request, and those it starts, see it; no other does.
        _charge.set(lambda tokens: usage.charge(key.tenant, tokens, key.limits))
        try:
            yield
        finally:
            usage.leave(key.tenant)

    return check


def presented_key(request: Request) -> str:
    """Returns the bearer key of a request, or Anthropic's x-api-key; empty when there is none."""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme:
        return key.strip() if scheme.lower() == "bearer" else ""
    return request.headers.get("x-api-key", "").strip()


def check_sizes(
    cache_salt: str | None,
    logit_bias: Mapping[str, float] | None,
    stop_token_ids: Sequence[int] | None,
) -> None:
    """Changes nothing; raises ApiError(400) naming the field that is larger than anyone needs."""
    sizes: tuple[tuple[str, Sized | None, int], ...] = (
        ("cache_salt", cache_salt, MAX_SALT_CHARACTERS),
        ("logit_bias", logit_bias, MAX_LOGIT_BIASES),
        ("stop_token_ids", stop_token_ids, MAX_STOP_TOKEN_IDS),
    )
    for param, value, limit in sizes:
        if value is not None and len(value) > limit:
            raise invalid(f"{param} has a length of {len(value)}; the limit is {limit}.", param)
