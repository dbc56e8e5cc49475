"""Encoded prompts to running generations: admission, the engine's answer, all of them or none."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, NamedTuple

import msgspec

from api.admission import Deadline, Door, in_time
from api.chat.encoding import Prompt
from api.chat_request import ChatRequest
from api.choice import Choice
from api.errors import ApiError, engine_is_dead
from api.generation_request import GenerationRequest
from api.grammar.answers import Grammars
from api.grammar.pending import PendingGrammars
from api.protection.priority import ANY_PRIORITY, PriorityRule
from api.turn import Part
from engine.client import EngineClient, EngineDead, EngineRefused
from engine.messages import Grammar, ReasoningBudget, Submit
from scheduler.admission import Sizes


class Caller(NamedTuple):
    """Who asks, by the API key, and until when the first token must come."""

    tenant: str
    deadline_s: float | None
    begin_s: float
    """When the request came in, by the event loop's clock."""
    priority: PriorityRule = ANY_PRIORITY

    @classmethod
    def now(
        cls, tenant: str, deadline_s: float | None, priority: PriorityRule = ANY_PRIORITY
    ) -> Caller:
        """Returns the sender of a request that came in just now."""
        return cls(tenant, deadline_s, asyncio.get_running_loop().time(), priority)

    def sizes(self, request: GenerationRequest, prompt: Prompt) -> Sizes:
        """Returns what admission asks of a prompt.

        With an API key the request counts for the key: a client cannot get more by naming many
        users. They are then kept apart in the cache only.
        """
        return Sizes(
            prompt_tokens=len(prompt.token_ids),
            n=request.n,
            tenant=self.tenant or request.tenant,
            deadline_s=self.deadline_s,
        )

    def deadline(self, door: Door, sizes: Sizes) -> Deadline | None:
        """Returns when the first token must have come, None where the sender did not say."""
        if self.deadline_s is None:
            return None
        return Deadline(door, sizes, self.begin_s + self.deadline_s)

    def cache_salt(self, request: GenerationRequest) -> str:
        """Returns the salt of the request's prefixes."""
        user = request.tenant
        if not self.tenant or not user:
            return request.cache_salt
        return f"{len(user)}:{user}{request.cache_salt}"


class Submitter:
    """Hands prompts to one engine, through its door."""

    def __init__(self, engine: EngineClient, door: Door, grammars: Grammars) -> None:
        self._engine, self._door, self._grammars = engine, door, grammars
        self._pending = PendingGrammars()

    async def submit(
        self,
        part_id: str,
        request: GenerationRequest,
        prompt: Prompt,
        choices: list[Choice],
        caller: Caller,
    ) -> Part:
        """Returns the running generation of a prompt once the engine has accepted it.

        choices: made before the engine has the prompt, so that should that fail nothing runs that
        nobody reads. Raises ApiError.
        """
        priority = caller.priority.of(request.priority)
        if request.answer is None:
            return await self._submit(part_id, request, prompt, choices, caller, priority, None)
        # Until the engine has compiled it, too; all that may take longer than the first token may.
        async with (
            in_time(self.deadline(request, prompt, caller)),
            self._pending.place(caller.sizes(request, prompt).tenant),
        ):
            grammar = await self._grammars.grammar(request.answer, in_reasoning=prompt.in_reasoning)
            return await self._submit(part_id, request, prompt, choices, caller, priority, grammar)

    async def _submit(
        self,
        part_id: str,
        request: GenerationRequest,
        prompt: Prompt,
        choices: list[Choice],
        caller: Caller,
        priority: int,
        grammar: Grammar | None,
    ) -> Part:
        room = self._engine.ready.max_model_len - len(prompt.token_ids)
        sampling = request.sampling
        max_tokens = min(sampling.max_tokens, room)
        sizes = caller.sizes(request, prompt)
        submit = Submit(
            id=part_id,
            token_ids=prompt.token_ids,
            sampling=msgspec.structs.replace(
                sampling,
                max_tokens=max_tokens,
                min_tokens=min(sampling.min_tokens, max_tokens),
                reasoning=self._reasoning_budget(request, prompt),
            ),
            spans=prompt.spans,
            n=request.n,
            priority=priority,
            tenant=sizes.tenant,
            cache_salt=caller.cache_salt(request),
            grammar=grammar,
        )
        # Nothing may wait between the two: both sides count submits.
        number = self._door.admit(sizes)
        try:
            generation = await self._engine.submit(submit)
        except EngineDead as error:
            raise engine_is_dead(error) from error
        except EngineRefused as error:
            raise ApiError(
                error.status,
                error.message,
                param=error.param,
                code=error.code,
                retry_after=error.retry_after,
            ) from error
        self._door.accepted(number, generation.cached_tokens)
        return Part(part_id, prompt, generation, choices)

    def _reasoning_budget(
        self, request: GenerationRequest, prompt: Prompt
    ) -> ReasoningBudget | None:
        limit_tokens, grammars = request.max_reasoning_tokens, self._grammars
        if limit_tokens is None or not prompt.in_reasoning:
            return None
        # A call that begins while the model reasons ends the reasoning, too.
        calls = isinstance(request, ChatRequest) and request.may_call
        also = (grammars.dsml_token_id,) if calls else ()
        return ReasoningBudget(limit_tokens, grammars.think_end_token_id, also)

    def deadline(
        self, request: GenerationRequest, prompt: Prompt, caller: Caller
    ) -> Deadline | None:
        """Returns when the first token of the answer must have come."""
        return caller.deadline(self._door, caller.sizes(request, prompt))


async def all_or_none(submits: Iterable[Coroutine[Any, Any, Part]]) -> list[Part]:
    """Returns the parts once all are accepted; should one fail, those that were accepted end.

    They are sent in their order. Raises what the first that failed raises.
    """
    tasks = [asyncio.create_task(submit) for submit in submits]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        for part in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(part, Part):
                async with part.generation:
                    pass
        raise
