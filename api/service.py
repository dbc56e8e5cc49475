"""From a request body to a running generation; shared by the HTTP server and the batch run.

turn = await service.start(body)      # everything refusable is refused here
async with turn:
    answer = await turn.completion()  # or: async for chunk in turn.chunks()
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
from collections.abc import Callable
from pathlib import Path

import msgspec

from api.admission import Deadline, Door
from api.chat.detokenizer import Detokenizer, TokenBytes
from api.chat.encoding import Encoder, Prompt, TokenizerError
from api.chat.messages import Message, PromptError, check_history, normalise_history
from api.chat.parser import OutputParser
from api.chat.stop import StopMatcher
from api.chat.template import TemplateError
from api.chat_request import ChatRequest, ModelFacts, read_chat_request
from api.choice import Choice
from api.errors import ApiError, invalid
from api.logprobs import LogprobWriter
from api.next_turn import TurnEnds
from api.turn import ChatTurn, engine_is_dead
from engine.client import (
    CheckpointError,
    EngineClient,
    EngineDead,
    EngineRefused,
    GenerationDefaults,
)
from engine.messages import Submit
from scheduler.admission import Sizes

ReadRequest = Callable[[bytes, ModelFacts], ChatRequest]
_MESSAGE = re.compile(r"messages\[(\d+)\]")

INLINE_BODY_BYTES = 32 * 2**10
"""Longer bodies are read and encoded on a thread, so that they do not hold up other streams."""


def load_prompt_format(folder: Path) -> tuple[Encoder, GenerationDefaults]:
    """Returns a checkpoint's tokenizer and prompt texts, and its defaults for silent fields.

    Raises CheckpointError for a file that is missing or cannot be used.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise CheckpointError(f"{file}: file not found")
    try:
        encoder = Encoder.from_folder(folder)
    except (TokenizerError, TemplateError) as error:
        raise CheckpointError(f"{folder}: {error}") from error
    return encoder, GenerationDefaults.from_folder(folder)


class ChatService:
    """Answers chat completions with one engine and one checkpoint's prompt format."""

    def __init__(
        self,
        engine: EngineClient,
        encoder: Encoder,
        names: tuple[str, ...],
        defaults: GenerationDefaults,
    ) -> None:
        tokens, rows = encoder.tokenizer.get_vocab_size(), engine.ready.vocab_size
        if tokens > rows:
            raise CheckpointError(
                f"tokenizer.json has {tokens} tokens; the model has rows for {rows} only"
            )
        self.engine = engine
        self.facts = ModelFacts(
            names=names,
            vocab_size=engine.ready.vocab_size,
            max_model_len=engine.ready.max_model_len,
            defaults=defaults,
            end_token_ids=tuple(dict.fromkeys((*encoder.stop_token_ids, *defaults.eos_token_ids))),
            call_token_ids=(encoder.dsml_token_id,),
        )
        self._encoder = encoder
        self._door = Door(engine)
        self._turn_ends = TurnEnds(engine, encoder)
        self._token_bytes = TokenBytes(encoder.tokenizer)
        self._logprobs = LogprobWriter(self._token_bytes)
        ids = range(encoder.tokenizer.get_vocab_size())
        self._longest_token_bytes = max(len(self._token_bytes.of(token_id)) for token_id in ids)
        fingerprint = hashlib.sha256(repr((names[0], msgspec.to_builtins(engine.ready))).encode())
        self.system_fingerprint = f"fp_{fingerprint.hexdigest()[:12]}"

    async def start(
        self,
        body: bytes,
        *,
        read: ReadRequest = read_chat_request,
        id_prefix: str = "chatcmpl-",
        tenant: str = "",
        deadline_s: float | None = None,
    ) -> ChatTurn:
        """Submits the request in `body` and returns it once the engine has accepted it.

        read: makes a ChatRequest of a body in some dialect; id_prefix: of the answer's id there.
        tenant: who asks, by the API key; the queue and the cache are shared out by it. deadline_s:
        seconds from now in which the first token must come.
        Raises ApiError with the status, and the field at fault where there is one.
        """
        begin_s = asyncio.get_running_loop().time()
        if len(body) <= INLINE_BODY_BYTES:
            request, prompt = self.prepare(body, read)
        else:
            request, prompt = await asyncio.to_thread(self.prepare, body, read)
        owner, cache_salt = _owner(tenant, request)
        sizes = Sizes(
            prompt_tokens=len(prompt.token_ids),
            n=request.n,
            tenant=owner,
            deadline_s=deadline_s,
        )
        deadline = None
        if deadline_s is not None:
            deadline = Deadline(self._door, sizes, begin_s + deadline_s)
        request_id = f"{id_prefix}{secrets.token_hex(12)}"
        return await self._submit(request_id, request, prompt, sizes, cache_salt, deadline)

    def prepare(
        self, body: bytes, read: ReadRequest = read_chat_request
    ) -> tuple[ChatRequest, Prompt]:
        """Returns the validated request and its prompt. Raises ApiError(400 or 404)."""
        request = read(body, self.facts)
        characters = sum(_characters(message) for message in request.messages)
        if characters > self.facts.max_model_len * self._longest_token_bytes:
            # A megabyte too long need not be tokenised to be refused.
            raise self._too_long(f"at least {characters // self._longest_token_bytes}")
        try:
            check_history(request.messages, request.thinking)
            prompt = self._encoder.encode(
                normalise_history(request.messages),
                tools=request.functions or None,
                thinking=request.thinking,
            )
        except PromptError as error:
            raise invalid(error.message, _as_sent(error.param, request)) from error
        except TemplateError as error:
            raise invalid(f"This checkpoint cannot take tools: {error}", "tools") from error
        if len(prompt.token_ids) >= self.facts.max_model_len:
            raise self._too_long(str(len(prompt.token_ids)))
        return request, prompt

    def _too_long(self, tokens: str) -> ApiError:
        return invalid(
            f"The prompt has {tokens} tokens; the window of {self.facts.max_model_len} tokens "
            "must hold it and at least one more.",
            "messages",
            "context_length_exceeded",
        )

    async def _submit(
        self,
        request_id: str,
        request: ChatRequest,
        prompt: Prompt,
        sizes: Sizes,
        cache_salt: str,
        deadline: Deadline | None,
    ) -> ChatTurn:
        room = self.facts.max_model_len - len(prompt.token_ids)
        sampling = request.sampling
        max_tokens = min(sampling.max_tokens, room)
        submit = Submit(
            id=request_id,
            token_ids=prompt.token_ids,
            sampling=msgspec.structs.replace(
                sampling, max_tokens=max_tokens, min_tokens=min(sampling.min_tokens, max_tokens)
            ),
            spans=prompt.spans,
            n=request.n,
            priority=request.priority,
            tenant=sizes.tenant,
            cache_salt=cache_salt,
        )
        # Before the engine has it: should this fail, nothing runs that nobody reads.
        choices = [self._choice(index, request, prompt) for index in range(request.n)]
        number = self._door.admit(sizes)
        try:
            generation = await self.engine.submit(submit)
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
        return ChatTurn(
            self.engine,
            generation,
            request_id,
            request,
            prompt,
            choices,
            self.system_fingerprint,
            self._turn_ends,
            deadline,
        )

    def _choice(self, index: int, request: ChatRequest, prompt: Prompt) -> Choice:
        return Choice(
            index,
            OutputParser(
                prompt.in_reasoning,
                request.may_call,
                tool_schemas=request.functions or None,
            ),
            Detokenizer(self._token_bytes, self.facts.end_token_ids),
            StopMatcher(request.stops),
            in_reasoning=prompt.in_reasoning,
            end_token_ids=frozenset(request.sampling.stop_token_ids),
            think_end_token_id=self._encoder.think_end_token_id,
            one_call=request.one_call,
            logprobs=self._logprobs if request.sampling.logprobs is not None else None,
        )


def _as_sent(param: str | None, request: ChatRequest) -> str | None:
    """Returns the path of a field of the conversation as it was in the request's own dialect."""
    found = _MESSAGE.match(param or "")
    if param is None or found is None:
        return param
    return request.message_paths[int(found[1])] + param[found.end() :]


def _owner(tenant: str, request: ChatRequest) -> tuple[str, str]:
    """Returns who the request counts for, and the salt of its prefixes.

    With an API key that is the key: a client cannot get more by naming many users. They are then
    kept apart in the cache only.
    """
    if not tenant:
        return request.tenant, request.cache_salt
    user = request.tenant
    return tenant, f"{len(user)}:{user}{request.cache_salt}" if user else request.cache_salt


def _characters(message: Message) -> int:
    """Characters of a message that reach the prompt in every turn; reasoning may be dropped."""
    calls = sum(len(call.name) + len(call.arguments) for call in message.tool_calls)
    return len(message.content) + calls
