"""A request body -> what the server will do, or the error that names the field at fault.

Fields are honoured, accepted because they change nothing, or refused because they would change the
answer and are not honoured yet. Nothing is dropped silently: a field nobody knows is logged once.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from api.chat.messages import Message
from api.conversation.context_management import Applied, ContextManagement
from api.conversation.restoration import MissingReasoning
from api.conversation.simulated_tools import read_markers
from api.errors import ApiError, from_validation, invalid, unsupported
from api.grammar.answers import AnswerDemand
from api.grammar.formats import (
    AnswerFormat,
    only_one,
    read_named,
    read_response_format,
    read_structured_outputs,
)
from api.grammar.schema import SchemaError, check_limits
from api.history import read_history
from api.profiles import PROFILES, ModelProfile, check_thinking
from api.protection.limits import check_sizes
from api.sampling import read_sampling, within
from api.schema import HARMLESS, KNOWN, REFUSED, ChatCompletionRequest, MessageParam
from api.tools import call_demand, read_tool_choice, read_tools
from engine.client import GenerationDefaults
from engine.messages import Sampling

logger = logging.getLogger("winnow.api")

MAX_CHOICES = 128
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 1000
"""Text that may yet become a stop string is held back and searched again at every token."""
USER_ID = re.compile(r"[A-Za-z0-9_-]{1,512}")

_decoder = msgspec.json.Decoder(dict[str, Any])
_warned_fields: set[str] = set()


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a request is checked against."""

    names: tuple[str, ...]
    """Names clients may use; the first is the one answers carry."""
    vocab_size: int
    max_model_len: int
    defaults: GenerationDefaults
    end_token_ids: tuple[int, ...]
    """Tokens that end an answer: end of sentence, and role tokens, which never belong in one."""
    call_token_ids: tuple[int, ...]
    """Tokens no tool call can be written without."""
    thinking: bool = False
    """Whether the model reasons when a request does not say."""
    profile: ModelProfile = PROFILES["v3.2"]
    """What the model can do."""
    max_reasoning_tokens: int | None = None
    """Reasoning tokens after which any answer begins; None: no limit."""
    shows_schemas: bool = True
    """Whether its prompt format has a place for the schema of an answer."""
    encode_text: Callable[[str], Sequence[int]] | None = None
    """Text -> token ids, for requests that name words."""


class GenerationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What every validated request says, whatever its prompts are made of."""

    model: str
    sampling: Sampling
    n: int
    """Choices of each prompt."""
    stops: tuple[str, ...]
    stream: bool
    include_usage: bool
    return_token_ids: bool = False
    """The answer also carries the ids of its tokens and of the prompt's."""
    tokens_as_ids: bool = False
    """Log-probabilities name tokens by their ids."""
    tenant: str
    cache_salt: str
    priority: int
    answer: AnswerDemand | None = None
    """What the answer has to be; None: anything."""
    max_reasoning_tokens: int | None = None
    """Reasoning tokens after which the answer begins; None: no limit."""


class ChatRequest(GenerationRequest, frozen=True, kw_only=True):
    """A validated chat completion request."""

    messages: list[Message]
    message_paths: tuple[str, ...]
    """Where each message stood in the request, for errors that name it."""
    functions: list[dict[str, Any]]
    """The inner function objects of the tools, as received; they are rendered into the prompt."""
    may_call: bool
    """Whether tool calls are read from the answer."""
    one_call: bool
    """The turn ends after its first complete call."""
    response_schema: dict[str, Any] | None = None
    """The schema of the answer, shown to the model in the prompt."""
    thinking: bool
    continues: bool = False
    """The last message is the start of the answer: the model goes on where it ends."""
    missing_reasoning: MissingReasoning | None = None
    """None: as the server is set."""
    retention_markers: tuple[str, ...] | None = None
    """What user messages that continue the turn begin with; None: every user message ends it."""
    context_management: ContextManagement | None = None
    lenient_tool_calls: bool | None = None
    """Whether calls in nearly the right form count; None: as the server is set."""
    restored_tokens: int = 0
    """Of reasoning that the client dropped; set when the prompt is made, as is the next."""
    applied: tuple[Applied, ...] = ()
    """What the context management has done to `messages`."""


def read_chat_request(body: bytes, facts: ModelFacts) -> ChatRequest:
    """Returns the request in `body`. Raises ApiError: 400 naming the field, 404 for the model."""
    return chat_request_of(read_fields(body), facts)


def chat_request_of(fields: Mapping[str, Any], facts: ModelFacts) -> ChatRequest:
    """Returns the request whose fields these are. Raises what :func:`read_chat_request` raises."""
    try:
        request = msgspec.convert(fields, ChatCompletionRequest)
    except msgspec.ValidationError as error:
        raise from_validation(error) from error
    model = checked_model(request.model, facts)
    _refuse_what_is_not_honoured(request, fields)
    functions = read_tools(request.tools)
    one_call = request.parallel_tool_calls is False
    choice = read_tool_choice(request.tool_choice, functions)
    calls = call_demand(choice, functions, one_call=one_call)
    may_call = calls is not None
    format_ = answer_format(request)
    if request.stream_options is not None and not request.stream:
        raise invalid("stream_options needs stream: true.", "stream_options")
    check_sizes(request.cache_salt, request.logit_bias, request.stop_token_ids)
    continues, messages = _continued(request)
    return ChatRequest(
        model=model,
        messages=read_history(messages),
        message_paths=tuple(f"messages[{index}]" for index in range(len(request.messages))),
        functions=functions,
        may_call=may_call,
        one_call=one_call,
        answer=checked_demand(AnswerDemand.of(calls, format_), continues),
        response_schema=_shown_schema(format_, facts),
        max_reasoning_tokens=reasoning_limit(
            {
                "thinking_token_budget": request.thinking_token_budget,
                "thinking.budget_tokens": (
                    None if request.thinking is None else request.thinking.budget_tokens
                ),
            },
            facts,
        ),
        thinking=_thinking(request, facts),
        continues=continues,
        missing_reasoning=request.missing_reasoning,
        retention_markers=read_markers(request.thinking_retention, request.retention_marker),
        context_management=_context_management(request, facts),
        lenient_tool_calls=request.lenient_tool_calls,
        sampling=read_sampling(
            request,
            facts.defaults,
            vocab_size=facts.vocab_size,
            max_model_len=facts.max_model_len,
            end_token_ids=facts.end_token_ids,
            # The tools stay in the prompt, so that its prefix is the same for every tool_choice.
            forbidden_token_ids=facts.call_token_ids if functions and not may_call else (),
            encode_text=facts.encode_text,
        ),
        n=within(1 if request.n is None else request.n, 1, MAX_CHOICES, "n"),
        stops=checked_stops(
            [request.stop] if isinstance(request.stop, str) else request.stop or [], "stop"
        ),
        stream=bool(request.stream),
        include_usage=bool(request.stream_options and request.stream_options.include_usage),
        return_token_ids=bool(request.return_token_ids),
        tokens_as_ids=bool(request.return_tokens_as_token_ids),
        tenant=checked_user_id(request.user_id, "user_id"),
        cache_salt=request.cache_salt or "",
        priority=within(request.priority or 0, -(2**31), 2**31 - 1, "priority"),
    )


def _continued(request: ChatCompletionRequest) -> tuple[bool, list[MessageParam]]:
    """Returns whether the last message is to be continued, and the messages without that mark.

    DeepSeek marks the message (`prefix`), vLLM the request (`continue_final_message`).
    """
    messages = request.messages
    place = len(messages) - 1
    marked = [index for index, message in enumerate(messages) if message.prefix]
    if marked and (marked[0] != place or messages[place].role != "assistant"):
        raise invalid(
            "Only the last message can be a prefix, and only one from the assistant.",
            f"messages[{marked[0]}].prefix",
        )
    if request.continue_final_message:
        if not messages or messages[place].role != "assistant":
            raise invalid(
                "continue_final_message needs a last message from the assistant.",
                "continue_final_message",
            )
        if request.add_generation_prompt:
            raise invalid(
                "add_generation_prompt opens a new message, continue_final_message does not.",
                "add_generation_prompt",
            )
    elif request.add_generation_prompt is False:
        raise unsupported("add_generation_prompt", "A prompt that opens no answer")
    if not (marked or request.continue_final_message):
        return False, messages
    return True, [*messages[:-1], msgspec.structs.replace(messages[-1], prefix=None)]


def _context_management(
    request: ChatCompletionRequest, facts: ModelFacts
) -> ContextManagement | None:
    if request.context_management is not None:
        request.context_management.check(facts.max_model_len)
    return request.context_management


def answer_format(request: ChatCompletionRequest) -> AnswerFormat | None:
    """Returns the form of the text, in whoever's words. Raises ApiError(400) for two of them."""
    names = ("guided_json", "guided_regex", "guided_choice", "guided_grammar", "regex", "ebnf")
    formats = [
        *read_structured_outputs(request.structured_outputs),
        *read_named({name: getattr(request, name) for name in names}),
    ]
    if (format_ := read_response_format(request.response_format)) is not None:
        formats.insert(0, format_)
    return only_one(formats)


def _shown_schema(format_: AnswerFormat | None, facts: ModelFacts) -> dict[str, Any] | None:
    """The schema that the model is shown, already within limits: it becomes prompt."""
    if format_ is None or not format_.in_prompt or not facts.shows_schemas:
        return None
    try:
        check_limits(format_.value)
    except SchemaError as error:
        raise invalid(f"{format_.param} cannot be used: {error}.", format_.param) from error
    schema: dict[str, Any] = format_.value
    return schema


def checked_demand(answer: AnswerDemand | None, continues: bool) -> AnswerDemand | None:
    """Returns the demand. Raises ApiError(400) for one on an answer that has begun already."""
    if answer is None or not continues:
        return answer
    param = answer.format.param if answer.format is not None else "tool_choice"
    raise unsupported(param, "Constraining an answer that continues a message")


def reasoning_limit(asked: Mapping[str, int | None], facts: ModelFacts) -> int | None:
    """Returns the reasoning tokens after which the answer begins: the least that is asked for.

    asked: field -> its value. Raises ApiError(400) for one out of range.
    """
    given = [
        within(value, 0, 2**31 - 1, param) for param, value in asked.items() if value is not None
    ]
    limits = [*given, *([facts.max_reasoning_tokens] if facts.max_reasoning_tokens else [])]
    return min(limits, default=None)


def read_fields(body: bytes) -> dict[str, Any]:
    """Returns the object in `body`. Raises ApiError(400) when it holds none."""
    try:
        return _decoder.decode(body)
    except msgspec.ValidationError as error:
        raise from_validation(error) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise invalid(f"The body is not valid JSON: {error}.", None, "invalid_json") from error
    except RecursionError as error:
        raise invalid("The body is nested too deeply.", None, "invalid_json") from error


def checked_model(name: str, facts: ModelFacts) -> str:
    """Returns the name that answers carry. Raises ApiError(404) for a model that is not served."""
    if name not in facts.names:
        raise ApiError(
            404,
            f"The model {name!r} does not exist; this server has {facts.names[0]!r}.",
            param="model",
            code="model_not_found",
        )
    return facts.names[0]


def _refuse_what_is_not_honoured(request: ChatCompletionRequest, fields: Mapping[str, Any]) -> None:
    refuse_unhonoured(fields, REFUSED)
    warn_of_unknown(fields, KNOWN | HARMLESS | REFUSED)
    if request.modalities is not None and request.modalities != ["text"]:
        raise unsupported("modalities", "Output other than text")


def refuse_unhonoured(fields: Mapping[str, Any], refused: frozenset[str]) -> None:
    """Raises ApiError(400) for a field out of `refused` that asks for something."""
    for name, value in fields.items():
        if name in refused and _asks_for_something(name, value):
            raise unsupported(name, name)


def _asks_for_something(name: str, value: Any) -> bool:
    """An empty object switches web search on; elsewhere what is empty asks for nothing."""
    if name == "web_search_options":
        return value is not None
    return value is not None and value is not False and value not in ("", [], {})


def warn_of_unknown(fields: Iterable[str], known: frozenset[str]) -> None:
    """Logs fields that nobody knows, one line per field and process.

    The names come from clients, so their number is bounded.
    """
    for name in fields:
        if name not in known and name not in _warned_fields and len(_warned_fields) < 1000:
            _warned_fields.add(name)
            logger.warning("ignoring the unknown request field %.100r", name)


def _thinking(request: ChatCompletionRequest, facts: ModelFacts) -> bool:
    """Whether the model reasons. Sources that contradict each other are refused.

    V3.2 has no levels of effort: `none` is chat mode, every other level is thinking mode.
    """
    stated: dict[str, bool] = {}
    if request.thinking is not None:
        stated["thinking"] = request.thinking.type == "enabled"
    if (template := request.chat_template_kwargs) is not None:
        if template.thinking is not None:
            stated["chat_template_kwargs.thinking"] = template.thinking
        if template.enable_thinking is not None:
            stated["chat_template_kwargs.enable_thinking"] = template.enable_thinking
    if request.reasoning_effort is not None:
        stated["reasoning_effort"] = request.reasoning_effort != "none"
    if not stated:
        return facts.thinking
    (first, thinking), *others = stated.items()
    for param, value in others:
        if value != thinking:
            raise invalid(f"{param} contradicts {first}.", param)
    check_thinking(facts.profile, thinking, first)
    return thinking


def checked_stops(stops: Sequence[str], param: str) -> tuple[str, ...]:
    """Returns the stop strings of field `param`. Raises ApiError(400)."""
    if len(stops) > MAX_STOPS:
        raise invalid(f"{len(stops)} stop strings were given; the limit is {MAX_STOPS}.", param)
    if "" in stops:
        raise invalid("A stop string must not be empty.", param)
    longest = max(map(len, stops), default=0)
    if longest > MAX_STOP_CHARACTERS:
        raise invalid(
            f"A stop string has {longest} characters; the limit is {MAX_STOP_CHARACTERS}.", param
        )
    return tuple(stops)


def checked_user_id(user_id: str | None, param: str) -> str:
    """Returns the user id of field `param`, "" for none. Raises ApiError(400)."""
    if user_id is None:
        return ""
    if not USER_ID.fullmatch(user_id):
        raise invalid(
            f"{param} has 1 to 512 characters out of letters, digits, '_' and '-'.", param
        )
    return user_id
