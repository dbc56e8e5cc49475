"""The running answer to one request, as its reader sees it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Protocol

from engine.messages import Accepted, Output, Refused, Submit


class EngineDead(Exception):
    """The engine process is gone; the message says why as far as it is known."""


class EngineRefused(Exception):
    """The engine did not take a request."""

    def __init__(self, refused: Refused) -> None:
        super().__init__(refused.message)
        self.status = refused.status
        self.code = refused.code
        self.message = refused.message
        self.param = refused.param
        self.retry_after = refused.retry_after


class GenerationOwner(Protocol):
    """What runs generations: a client of an engine."""

    @property
    def death(self) -> str | None:
        """Why the engine is gone; None while it lives."""

    def forget(self, generation: Generation) -> None:
        """Drops a generation; aborts it unless it has finished."""


class Generation:
    """The running answer to one request: an async iterator over news, merged while unread.

    Use it as a context manager: leaving before every choice has ended aborts the request.
    """

    def __init__(self, client: GenerationOwner, submit: Submit) -> None:
        self.id = submit.id
        self.cached_tokens = 0
        self._client = client
        self._unfinished = submit.n
        self._news: list[Output] = []
        self._wake = asyncio.Event()
        self._accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def __aenter__(self) -> Generation:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client.forget(self)

    async def __aiter__(self) -> AsyncGenerator[list[Output], None]:
        while self._unfinished or self._news:
            if not self._news:
                if self._client.death is not None:
                    raise EngineDead(self._client.death)
                self._wake.clear()
                await self._wake.wait()
                continue
            news, self._news = self._news, []
            self._unfinished -= sum(1 for output in news if output.finish)
            yield news

    @property
    def finished(self) -> bool:
        """Whether every choice's terminal event was read."""
        return not self._unfinished and not self._news

    def take(self, output: Output) -> None:
        """Adds news; an unread Output of the same choice absorbs it, so memory stays bounded."""
        if output.choice == 0 and "cached_tokens" in output.extras:
            self.cached_tokens = int(output.extras["cached_tokens"])
        for i, waiting in enumerate(self._news):
            if waiting.choice == output.choice:
                self._news[i] = _merge(waiting, output)
                break
        else:
            self._news.append(output)
        self._wake.set()

    def accept(self, message: Accepted) -> None:
        self.cached_tokens = message.cached_tokens
        self._resolve(None)

    def fail(self, error: Exception) -> None:
        """The engine refused the request or died."""
        self._resolve(error)
        self._wake.set()

    def _resolve(self, error: Exception | None) -> None:
        if self._accepted.done():
            return
        if error is None:
            self._accepted.set_result(None)
        else:
            self._accepted.set_exception(error)

    async def accepted(self) -> None:
        """Waits for the engine's word; raises EngineRefused or EngineDead."""
        await self._accepted


def _merge(first: Output, second: Output) -> Output:
    """The second after the first, whose lists grow in place: nobody has seen them yet."""
    first.token_ids.extend(second.token_ids)
    logprobs = first.logprobs
    if logprobs is None:
        logprobs = second.logprobs
    elif second.logprobs is not None:
        logprobs.extend(second.logprobs)
    return Output(
        first.id,
        first.choice,
        first.token_ids,
        logprobs,
        second.finish,
        {**first.extras, **second.extras},
        second.prompt_logprobs if first.prompt_logprobs is None else first.prompt_logprobs,
    )
