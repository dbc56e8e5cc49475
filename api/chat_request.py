"""A request body -> what the server will do, or the error that names the field at fault.

Fields are honoured, accepted because they change nothing, or refused because they would change the
answer and are not honoured yet. Nothing is dropped silently: a field nobody knows is logged once.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
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
    fields = _fields(body)
    try:
        request = msgspec.convert(fields, ChatCompletionRequest)
    except msgspec.ValidationError as error:
        raise from_validation(error) from error
    if request.model not in facts.names:
        raise ApiError(
            404,
            f"The model {request.model!r} does not exist; this server has {facts.names[0]!r}.",
            param="model",
            code="model_not_found",
        )
    _refuse_what_is_not_honoured(request, fields)
    functions = read_tools(request.tools)
    may_call = read_tool_choice(request.tool_choice) == "auto" and bool(functions)
    if request.stream_options is not None and not request.stream:
        raise invalid("stream_options needs stream: true.", "stream_options")
    return ChatRequest(
        model=facts.names[0],
        messages=read_history(request.messages),
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
        stops=_stops(request.stop),
        stream=bool(request.stream),
        include_usage=bool(request.stream_options and request.stream_options.include_usage),
        tenant=_user_id(request.user_id),
        cache_salt=request.cache_salt or "",
        priority=within(request.priority or 0, -(2**31), 2**31 - 1, "priority"),
    )


def _fields(body: bytes) -> dict[str, Any]:
    try:
        return _decoder.decode(body)
    except msgspec.ValidationError as error:
        raise from_validation(error) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise invalid(f"The body is not valid JSON: {error}.", None, "invalid_json") from error
    except RecursionError as error:
        raise invalid("The body is nested too deeply.", None, "invalid_json") from error


def _refuse_what_is_not_honoured(request: ChatCompletionRequest, fields: Mapping[str, Any]) -> None:
    for name, value in fields.items():
        if name in REFUSED and _asks_for_something(name, value):
            raise unsupported(name, name)
        if name not in KNOWN and name not in HARMLESS and name not in REFUSED:
            _warn_once(name)
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


def _warn_once(name: str) -> None:
    """One line per field and process; the names come from clients, so their number is bounded."""
    if name not in _warned_fields and len(_warned_fields) < 1000:
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


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > MAX_STOPS:
        raise invalid(f"{len(stops)} stop strings were given; the limit is {MAX_STOPS}.", "stop")
    if "" in stops:
        raise invalid("A stop string must not be empty.", "stop")
    longest = max(map(len, stops), default=0)
    if longest > MAX_STOP_CHARACTERS:
        raise invalid(
            f"A stop string has {longest} characters; the limit is {MAX_STOP_CHARACTERS}.", "stop"
        )
    return stops


def _user_id(user_id: str | None) -> str:
    if user_id is None:
        return ""
    if not USER_ID.fullmatch(user_id):
        raise invalid(
            "user_id has 1 to 512 characters out of letters, digits, '_' and '-'.", "user_id"
        )
    return user_id
