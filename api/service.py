"""From a request body to running generations; shared by the HTTP server and the batch run.

turn = await service.start(body)      # everything refusable is refused here
async with turn:
    answer = await turn.completion()  # or: async for chunk in turn.chunks()
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import re
import secrets
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import msgspec

from api.admission import Door, in_time
from api.chat.detokenizer import Detokenizer, TokenBytes
from api.chat.encoding import Encoder, Prompt, TokenizerError
from api.chat.messages import Message, PromptError
from api.chat.template import TemplateError
from api.chat_request import ChatRequest, read_chat_request
from api.chat_turn import ChatTurn
from api.choices import Choices
from api.completions.request import (
    CompletionRequest,
    check_repeated,
    read_completion_request,
)
from api.config import ChatConfig
from api.conversation import restoration
from api.conversation.context_management import SummaryNeeded
from api.conversation.next_turn import TurnEnds
from api.conversation.prepare import Conversations
from api.conversation.summary import Summariser
from api.errors import ApiError, invalid
from api.facts import ModelFacts
from api.generation_request import nesting_refused
from api.grammar.answers import Grammars
from api.logprobs import check_prompt_entries
from api.metrics.metrics import Metrics
from api.profiles import check_thinking, choose_profile
from api.protection.priority import ANY_PRIORITY, PriorityRule
from api.submission import Caller, Submitter, all_or_none
from api.turn import Turn
from engine.client import (
    CheckpointError,
    EngineClient,
    GenerationDefaults,
)
from scheduler.admission import Sizes

ReadRequest = Callable[[bytes, ModelFacts], ChatRequest]
_MESSAGE = re.compile(r"messages\[(\d+)\]")

MAX_NEW_SUMMARIES = 4
"""Of one request; in a tool loop that is managed from its start, one is needed at a time."""
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
        config: ChatConfig | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        """metrics: of the server; None: nobody looks."""
        config = config or ChatConfig()
        self._requests = (metrics or Metrics(names[0])).requests
        profile = choose_profile(config.model_profile, names[0])
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
            defaults=msgspec.structs.replace(
                defaults, max_new_tokens=defaults.max_new_tokens or profile.default_max_tokens
            ),
            end_token_ids=tuple(dict.fromkeys((*encoder.stop_token_ids, *defaults.eos_token_ids))),
            call_token_ids=(encoder.dsml_token_id,),
            thinking=profile.thinking == "always",
            profile=profile,
            max_reasoning_tokens=config.max_reasoning_tokens,
            encode_text=encoder.encode_text,
            shows_schemas=_shows_schemas(encoder),
        )
        self.conversations = Conversations(encoder, engine.ready.max_model_len, profile, config)
        self._encoder = encoder
        self._door = Door(engine)
        grammars = Grammars(encoder.think_end_token_id, encoder.dsml_token_id)
        self._submitter = Submitter(engine, self._door, grammars)
        self._summariser = Summariser(
            engine,
            encoder,
            self._door,
            instruction=config.summary_instruction,
            max_tokens=config.summary_max_tokens,
        )
        self._turn_ends = TurnEnds(engine, encoder)
        self._token_bytes = TokenBytes(encoder.tokenizer)
        self._choices = Choices(
            encoder, self._token_bytes, self.facts.end_token_ids, lenient=config.lenient_tool_calls
        )
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
        priority: PriorityRule = ANY_PRIORITY,
    ) -> ChatTurn:
        """Submits the request in `body` and returns it once the engine has accepted it.

        read: makes a ChatRequest of a body in some dialect; id_prefix: of the answer's id there.
        tenant: who asks, by the API key; the queue and the cache are shared out by it. deadline_s:
        seconds from now in which the first token must come. priority: what the sender may ask for.
        Raises ApiError with the status, and the field at fault where there is one.
        """
        caller = Caller.now(tenant, deadline_s, priority)
        turn_id = f"{id_prefix}{secrets.token_hex(12)}"
        request, prompt = await self._prepared(body, read, turn_id, caller)
        choices = [self._choices.of_chat(index, request, prompt) for index in range(request.n)]
        part = await self._submitter.submit(turn_id, request, prompt, choices, caller)
        remember = None
        if request.may_call and not request.continues:
            remember = partial(
                restoration.remember,
                self.conversations.store,
                owner_of(caller, request),
                self._encoder,
                in_reasoning=prompt.in_reasoning,
            )
        return ChatTurn(
            self.engine,
            turn_id,
            request,
            part,
            self.system_fingerprint,
            self._turn_ends,
            self._submitter.deadline(request, prompt, caller),
            remember,
            self._requests.begin(caller.begin_s),
            self._choices.logprobs(request),
        )

    async def _prepared(
        self, body: bytes, read: ReadRequest, turn_id: str, caller: Caller
    ) -> tuple[ChatRequest, Prompt]:
        """Returns what `prepare` returns, once the model has written the summaries it takes."""
        inline = len(body) <= INLINE_BODY_BYTES
        if inline:
            request = self._read(body, read)
        else:
            request = await asyncio.to_thread(self._read, body, read)
        # A history that is managed is played from its start, and what is restored is in no body.
        inline = inline and request.context_management is None
        for number in itertools.count():
            try:
                if inline:
                    return self._prompt(request, caller.tenant)
                return await asyncio.to_thread(self._prompt, request, caller.tenant)
            except SummaryNeeded as needed:
                if number == MAX_NEW_SUMMARIES:
                    raise invalid(
                        f"The history needs more than {number} summaries that were never made.",
                        "context_management.strategy",
                    ) from needed
                await self._summarise(needed, request, f"{turn_id}-summary-{number}", caller)
        raise AssertionError("the loop above has no end")

    async def _summarise(
        self, needed: SummaryNeeded, request: ChatRequest, request_id: str, caller: Caller
    ) -> None:
        """Has the model write the summary that a prompt waits for. Raises ApiError."""
        tenant = caller.tenant or request.tenant
        asks = Sizes(prompt_tokens=0, n=1, tenant=tenant, deadline_s=caller.deadline_s)
        async with in_time(caller.deadline(self._door, asks)):
            text = await self._summariser.summarise(
                needed.trajectory,
                request_id=request_id,
                tools=request.functions or None,
                tenant=tenant,
                cache_salt=caller.cache_salt(request),
                priority=caller.priority.of(request.priority),
            )
        self.conversations.summaries.put(needed.key, text)

    async def start_completion(
        self,
        body: bytes,
        *,
        tenant: str = "",
        deadline_s: float | None = None,
        priority: PriorityRule = ANY_PRIORITY,
    ) -> Turn[CompletionRequest]:
        """Submits the prompts in `body` and returns them once the engine has accepted all of them.

        Should one be refused, none is left running. Arguments and errors are those of `start`.
        """
        caller = Caller.now(tenant, deadline_s, priority)
        if len(body) <= INLINE_BODY_BYTES:
            request, prompts = self.prepare_completion(body)
        else:
            request, prompts = await asyncio.to_thread(self.prepare_completion, body)
        self._check_together(request, prompts)
        turn_id = f"cmpl-{secrets.token_hex(12)}"
        submits = []
        for place, prompt in enumerate(prompts):
            part_id = turn_id if len(prompts) == 1 else f"{turn_id}-{place}"
            first = place * request.n
            choices = [self._choices.of_text(first + k, request) for k in range(request.n)]
            submits.append(self._submitter.submit(part_id, request, prompt, choices, caller))
        parts = await all_or_none(submits)
        return Turn(
            self.engine,
            turn_id,
            request,
            parts,
            self.system_fingerprint,
            self._submitter.deadline(request, prompts[0], caller),
            self._requests.begin(caller.begin_s),
            self._choices.logprobs(request),
        )

    def _check_together(self, request: CompletionRequest, prompts: Sequence[Prompt]) -> None:
        """Raises ApiError(400) for prompts that would fill the queue before the last of them."""
        ready = self.engine.ready
        choices, tokens = request.n * len(prompts), sum(len(p.token_ids) for p in prompts)
        for count, limit, what in (
            (choices, ready.max_queued_requests, "choices"),
            (tokens, ready.max_queued_tokens, "prompt tokens"),
        ):
            if len(prompts) > 1 and count > limit:
                raise invalid(
                    f"The prompts have {count} {what} together; at most {limit}.", "prompt"
                )

    def prepare(
        self, body: bytes, read: ReadRequest = read_chat_request, tenant: str = ""
    ) -> tuple[ChatRequest, Prompt]:
        """Returns the validated request, with the conversation the model sees, and its prompt.

        tenant: whose reasoning and summaries it may use. Raises ApiError(400 or 404), and
        SummaryNeeded when the model has to write one first.
        """
        return self._prompt(self._read(body, read), tenant)

    def _read(self, body: bytes, read: ReadRequest) -> ChatRequest:
        with nesting_refused():
            return read(body, self.facts)

    def _prompt(self, request: ChatRequest, tenant: str) -> tuple[ChatRequest, Prompt]:
        """Returns the request with the conversation that the model sees, and its prompt."""
        check_thinking(self.facts.profile, request.thinking, "thinking")
        if len(request.messages) > self.facts.max_model_len:
            raise self._too_long(f"at least {len(request.messages)}", "messages")
        size_bytes = sum(map(_text_bytes, request.messages))
        too_long = size_bytes > self.facts.max_model_len * self._longest_token_bytes
        if too_long and request.context_management is None:
            # A megabyte too long need not be tokenised to be refused.
            at_least = size_bytes // self._longest_token_bytes
            raise self._too_long(f"at least {at_least}", "messages")
        at_least = len(msgspec.json.encode(request.functions)) // self._longest_token_bytes
        if at_least > self.facts.max_model_len:
            raise self._too_long(f"at least {at_least}", "tools")
        owner = owner_of(Caller(tenant, None, 0.0), request)
        try:
            with nesting_refused("messages"):
                request, prompt = self.conversations.prompt(request, owner)
        except PromptError as error:
            raise invalid(error.message, _as_sent(error.param, request), error.code) from error
        except TemplateError as error:
            raise invalid(f"This checkpoint cannot take tools: {error}", "tools") from error
        if len(prompt.token_ids) >= self.facts.max_model_len:
            raise self._too_long(str(len(prompt.token_ids)), "messages")
        if request.prompt_logprobs is not None:
            tokens = len(prompt.token_ids)
            check_prompt_entries(tokens, request.prompt_logprobs, "prompt_logprobs")
        return request, prompt

    def prepare_completion(self, body: bytes) -> tuple[CompletionRequest, list[Prompt]]:
        """Returns the validated request and its prompts. Raises ApiError(400 or 404)."""
        with nesting_refused():
            request = read_completion_request(body, self.facts)
        prompts = []
        for path, text in zip(request.prompt_paths, request.prompts, strict=True):
            prompt = self.encode_raw(text, path, bos=request.bos)
            if len(prompt.token_ids) >= self.facts.max_model_len:
                raise self._too_long(str(len(prompt.token_ids)), path)
            prompts.append(prompt)
        if request.echo:
            echoes = [t if isinstance(t, str) else self.decode(t) for t in request.prompts]
            request = msgspec.structs.replace(request, echoes=echoes)
        check_repeated(request, sum(len(prompt.token_ids) for prompt in prompts))
        return request, prompts

    def encode_raw(self, text: str | Sequence[int], param: str, *, bos: bool = True) -> Prompt:
        """Returns the prompt that is nothing but `text` or these token ids; see Encoder.encode_raw.

        Raises ApiError(400) that names `param`, also for a text that is certainly too long: it need
        not be tokenised for that.
        """
        # Token ids are no text, but as many of them as bytes are too many, too.
        size_bytes = _utf8_bytes(text) if isinstance(text, str) else len(text)
        if size_bytes > self.facts.max_model_len * self._longest_token_bytes:
            raise self._too_long(f"at least {size_bytes // self._longest_token_bytes}", param)
        try:
            return self._encoder.encode_raw(text, bos=bos)
        except PromptError as error:
            raise invalid(error.message, param) from error

    def decode(self, token_ids: Iterable[int]) -> str:
        """Returns the text of tokens, special strings included; U+FFFD for what is no UTF-8."""
        detokenizer = Detokenizer(self._token_bytes)
        return detokenizer.feed(token_ids) + detokenizer.finish()

    def _too_long(self, tokens: str, param: str) -> ApiError:
        return invalid(
            f"The prompt has {tokens} tokens; the window of {self.facts.max_model_len} tokens "
            "must hold it and at least one more.",
            param,
            "context_length_exceeded",
        )


def _shows_schemas(encoder: Encoder) -> bool:
    """Whether the checkpoint has a text that introduces the schema of an answer."""
    try:
        encoder.template.response_format_pieces({})
    except TemplateError:
        return False
    return True


def _as_sent(param: str | None, request: ChatRequest) -> str | None:
    """Returns the path of a field of the conversation as it was in the request's own dialect."""
    found = _MESSAGE.match(param or "")
    if param is None or found is None:
        return param
    return request.message_paths[int(found[1])] + param[found.end() :]


def owner_of(caller: Caller, request: ChatRequest) -> str:
    """Returns what a conversation's stored turns are kept under: who shares its cached prefixes."""
    tenant = caller.tenant or request.tenant
    return f"{len(tenant)}:{tenant}{caller.cache_salt(request)}"


def _text_bytes(message: Message) -> int:
    """Bytes of a message that reach the prompt in every turn; reasoning may be dropped."""
    calls = sum(_utf8_bytes(call.name + call.arguments) for call in message.tool_calls)
    return _utf8_bytes(message.content) + calls


def _utf8_bytes(text: str) -> int:
    """Its length in UTF-8; an unpaired surrogate, which is refused later, counts as its escape."""
    return len(text) if text.isascii() else len(text.encode(errors="backslashreplace"))
