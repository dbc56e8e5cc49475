"""The model's own summary of a tool loop, for a context that starts afresh with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from api.admission import Door
from api.chat.encoding import Encoder
from api.chat.messages import Message, normalise_history
from api.errors import ApiError, engine_is_dead, invalid
from api.protection.limits import charge_tokens
from engine.client import EngineClient, EngineDead, EngineRefused
from engine.messages import Sampling, Submit
from scheduler.admission import Sizes

SEED = 0
FORBIDDEN_BIAS = -100.0


class Summariser:
    """Asks the engine for summaries: greedy, in chat mode, tools in the prompt but not callable."""

    def __init__(
        self,
        engine: EngineClient,
        encoder: Encoder,
        door: Door,
        *,
        instruction: str,
        max_tokens: int,
    ) -> None:
        self._engine, self._encoder, self._door = engine, encoder, door
        self._instruction, self._max_tokens = instruction, max_tokens

    async def summarise(
        self,
        trajectory: Sequence[Message],
        *,
        request_id: str,
        tools: Sequence[Mapping[str, Any]] | None,
        tenant: str,
        cache_salt: str,
        priority: int,
    ) -> str:
        """Returns the summary. The sender is charged for what it took, ended or not.

        Raises ApiError: 400 when trajectory and summary do not fit the window, else what refused
        or failed.
        """
        encoder = self._encoder
        asked = normalise_history([*trajectory, Message("user", self._instruction)])
        prompt = encoder.encode(asked, tools=tools, thinking=False)
        room = self._engine.ready.max_model_len - len(prompt.token_ids)
        if room < 1:
            raise invalid(
                f"The steps to be summarised make a prompt of {len(prompt.token_ids)} tokens; the "
                f"window has {self._engine.ready.max_model_len}.",
                "context_management.strategy",
                "context_length_exceeded",
            )
        submit = Submit(
            id=request_id,
            token_ids=prompt.token_ids,
            sampling=Sampling(
                max_tokens=min(self._max_tokens, room),
                temperature=0.0,
                seed=SEED,
                stop_token_ids=encoder.stop_token_ids,
                logit_bias={encoder.dsml_token_id: FORBIDDEN_BIAS},
            ),
            spans=prompt.spans,
            priority=priority,
            tenant=tenant,
            cache_salt=cache_salt,
        )
        number = self._door.admit(Sizes(prompt_tokens=len(prompt.token_ids), n=1, tenant=tenant))
        token_ids: list[int] = []
        try:
            generation = await self._engine.submit(submit)
            self._door.accepted(number, generation.cached_tokens)
            try:
                async with generation:
                    async for outputs in generation:
                        for output in outputs:
                            token_ids += output.token_ids
                            if output.finish in ("abort", "error"):
                                raise ApiError(
                                    500, "The engine gave up on a summary.", code="engine_error"
                                )
            finally:
                charge_tokens(len(prompt.token_ids) + len(token_ids))
        except EngineRefused as error:
            raise ApiError(
                error.status, error.message, code=error.code, retry_after=error.retry_after
            ) from error
        except EngineDead as error:
            raise engine_is_dead(error) from error
        return encoder.tokenizer.decode(token_ids, skip_special_tokens=True).strip()
