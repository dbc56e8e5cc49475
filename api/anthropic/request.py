"""A Messages request -> the same ChatRequest that a chat completion becomes."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from api.anthropic.history import read_conversation
from api.anthropic.schema import (
    HARMLESS,
    CountTokensRequest,
    MessagesRequest,
    ToolChoiceParam,
    ToolParam,
)
from api.chat_request import ChatRequest, checked_management
from api.conversation.context_management import ContextManagement
from api.conversation.simulated_tools import read_markers
from api.errors import ApiError, from_validation, unsupported
from api.facts import ModelFacts
from api.fields import TextFields
from api.generation_request import (
    checked_model,
    checked_priority,
    checked_stops,
    checked_user_id,
    read_fields,
    warn_of_unknown,
)
from api.grammar.answers import AnswerDemand
from api.grammar.formats import AnswerFormat, only_one
from api.protection.limits import check_sizes
from api.sampling import checked_max_tokens, read_sampling, reasoning_limit
from api.tools import ToolChoice, call_demand, read_tool_choice, read_tools

T = TypeVar("T", MessagesRequest, CountTokensRequest)


def read_messages_request(body: bytes, facts: ModelFacts) -> ChatRequest:
    """Returns the request in `body`. Raises ApiError: 400 naming the field, 404 for the model."""
    return _chat_request(_convert(body, MessagesRequest), facts)


def read_count_request(body: bytes, facts: ModelFacts) -> ChatRequest:
    """Returns the request in `body`, which asks for a count of its prompt's tokens alone."""
    count = _convert(body, CountTokensRequest)
    fields = {name: getattr(count, name) for name in count.__struct_fields__}
    return _chat_request(MessagesRequest(max_tokens=1, **fields), facts)


def _convert(body: bytes, kind: type[T]) -> T:
    fields = read_fields(body)
    try:
        request = msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        raise from_validation(error) from error
    warn_of_unknown(fields, HARMLESS.union(MessagesRequest.__struct_fields__))
    return request


def _chat_request(request: MessagesRequest, facts: ModelFacts) -> ChatRequest:
    model = checked_model(request.model, facts)
    conversation = read_conversation(request.system, request.messages)
    functions = _functions(request.tools or [])
    choice = request.tool_choice
    one_call = bool(choice and choice.disable_parallel_tool_use)
    calls = call_demand(_tool_choice(choice, functions), functions, one_call=one_call)
    may_call = calls is not None
    continues = conversation.messages[-1].role == "assistant"
    check_sizes(request.cache_salt, None, None)
    sampling = TextFields(
        model=model,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
    )
    thinking, budget_tokens = facts.thinking, None
    if request.thinking is not None:
        # V3.2 has no levels of effort: what is not disabled is thinking mode.
        thinking = request.thinking.type != "disabled"
        budget_tokens = request.thinking.budget_tokens
    return ChatRequest(
        model=model,
        messages=conversation.messages,
        message_paths=tuple(conversation.paths),
        functions=functions,
        may_call=may_call,
        one_call=one_call,
        answer=AnswerDemand.of(calls, _answer_format(request), continues=continues),
        max_reasoning_tokens=reasoning_limit({"thinking.budget_tokens": budget_tokens}, facts),
        thinking=thinking,
        continues=continues,
        missing_reasoning=request.missing_reasoning,
        retention_markers=read_markers(request.thinking_retention, request.retention_marker),
        context_management=_context_management(request, facts),
        lenient_tool_calls=request.lenient_tool_calls,
        sampling=read_sampling(
            sampling,
            facts,
            max_tokens=checked_max_tokens({"max_tokens": request.max_tokens}, facts),
            forbidden_token_ids=facts.call_token_ids if functions and not may_call else (),
        ),
        n=1,
        stops=checked_stops(request.stop_sequences or [], "stop_sequences"),
        stream=bool(request.stream),
        include_usage=True,
        tenant=checked_user_id(
            request.metadata.user_id if request.metadata else None, "metadata.user_id"
        ),
        cache_salt=request.cache_salt or "",
        priority=checked_priority(request.priority),
    )


def _answer_format(request: MessagesRequest) -> AnswerFormat | None:
    """The form of the text. Raises ApiError(400) where it is asked for by both of its names."""
    config = request.output_config
    given = {
        "output_config.format": config.format if config is not None else None,
        "output_format": request.output_format,
    }
    return only_one(
        [
            AnswerFormat("json_schema", format_.schema, f"{param}.schema")
            for param, format_ in given.items()
            if format_ is not None
        ]
    )


def _context_management(request: MessagesRequest, facts: ModelFacts) -> ContextManagement | None:
    """Winnow's rule, which has a `strategy`. Anthropic's own `edits` are advice on what may be
    cleared, which this server need not take."""
    fields = request.context_management
    if fields is None or "strategy" not in fields:
        if fields is not None:
            warn_of_unknown((f"context_management.{name}" for name in fields), frozenset())
        return None
    try:
        rule = msgspec.convert({"context_management": fields}, _Managed).context_management
    except msgspec.ValidationError as error:
        raise from_validation(error) from error
    return checked_management(rule, facts)


class _Managed(msgspec.Struct):
    context_management: ContextManagement


def _functions(tools: list[ToolParam]) -> list[dict[str, object]]:
    wrapped = []
    for index, tool in enumerate(tools):
        if tool.type not in (None, "custom"):
            raise unsupported(f"tools[{index}].type", f"A tool of type {tool.type!r}")
        function: dict[str, object] = {"name": tool.name}
        if tool.description is not None:
            function["description"] = tool.description
        if tool.input_schema is not None:
            function["parameters"] = tool.input_schema
        if tool.strict is not None:
            function["strict"] = tool.strict
        wrapped.append({"type": "function", "function": function})
    try:
        return read_tools(wrapped)
    except ApiError as error:
        if error.param:
            renamed = error.param.replace(".function", "").replace("parameters", "input_schema")
            error.param = renamed
        raise


def _tool_choice(choice: ToolChoiceParam | None, functions: list[dict[str, object]]) -> ToolChoice:
    if choice is None:
        return ToolChoice("auto")
    same: dict[str, str | dict[str, object]] = {
        "auto": "auto",
        "none": "none",
        "any": "required",
        "tool": {"type": "function", "function": {"name": choice.name}},
    }
    return read_tool_choice(same[choice.type], functions)
