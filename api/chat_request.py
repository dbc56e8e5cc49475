"""A request body -> what the server will do, or the error that names the field at fault.

Fields are honoured, accepted because they change nothing, or refused because they would change the
answer and are not honoured yet. Nothing is dropped silently: a field nobody knows is logged once.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from api.chat.messages import Message
from api.errors import ApiError, from_validation, invalid, unsupported
from api.history import read_history
from api.sampling import read_sampling, within
from api.schema import HARMLESS, KNOWN, REFUSED, ChatCompletionRequest
from api.tools import read_tool_choice, read_tools
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


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A validated chat completion request."""

    model: str
    messages: list[Message]
    message_paths: tuple[str, ...]
    """Where each message stood in the request, for errors that name it."""
    functions: list[dict[str, Any]]
    """The inner function objects of the tools, as received; they are rendered into the prompt."""
    may_call: bool
    """Whether tool calls are read from the answer."""
    one_call: bool
    """The turn ends after its first complete call."""
    thinking: bool
    sampling: Sampling
    n: int
    stops: tuple[str, ...]
    stream: bool
    include_usage: bool
    tenant: str
    cache_salt: str
    priority: int


def read_chat_request(body: bytes, facts: ModelFacts) -> ChatRequest:
    """Returns the request in `body`. Raises ApiError: 400 naming the field, 404 for the model."""
    fields = read_fields(body)
    try:
        request = msgspec.convert(fields, ChatCompletionRequest)
    except msgspec.ValidationError as error:
        raise from_validation(error) from error
    model = checked_model(request.model, facts)
    _refuse_what_is_not_honoured(request, fields)
    functions = read_tools(request.tools)
    may_call = read_tool_choice(request.tool_choice) == "auto" and bool(functions)
    if request.stream_options is not None and not request.stream:
        raise invalid("stream_options needs stream: true.", "stream_options")
    return ChatRequest(
        model=model,
        messages=read_history(request.messages),
        message_paths=tuple(f"messages[{index}]" for index in range(len(request.messages))),
        functions=functions,
        may_call=may_call,
        one_call=request.parallel_tool_calls is False,
        thinking=_thinking(request, facts.thinking),
        sampling=read_sampling(
            request,
            facts.defaults,
            vocab_size=facts.vocab_size,
            max_model_len=facts.max_model_len,
            end_token_ids=facts.end_token_ids,
            # The tools stay in the prompt, so that its prefix is the same for every tool_choice.
            forbidden_token_ids=facts.call_token_ids if functions and not may_call else (),
        ),
        n=within(1 if request.n is None else request.n, 1, MAX_CHOICES, "n"),
        stops=checked_stops(
            [request.stop] if isinstance(request.stop, str) else request.stop or [], "stop"
        ),
        stream=bool(request.stream),
        include_usage=bool(request.stream_options and request.stream_options.include_usage),
        tenant=checked_user_id(request.user_id, "user_id"),
        cache_salt=request.cache_salt or "",
        priority=within(request.priority or 0, -(2**31), 2**31 - 1, "priority"),
    )


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
    for name, value in fields.items():
        if name in REFUSED and _asks_for_something(name, value):
            raise unsupported(name, name)
    warn_of_unknown(fields, KNOWN | HARMLESS | REFUSED)
    if request.response_format is not None and request.response_format.type != "text":
        raise unsupported(
            "response_format", f"response_format of type {request.response_format.type!r}"
        )
    if request.modalities is not None and request.modalities != ["text"]:
        raise unsupported("modalities", "Output other than text")


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


def _thinking(request: ChatCompletionRequest, default: bool) -> bool:
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
        return default
    (first, thinking), *others = stated.items()
    for param, value in others:
        if value != thinking:
            raise invalid(f"{param} contradicts {first}.", param)
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
