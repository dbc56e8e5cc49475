"""A chat completion's body -> what the server will do, or the error that names the field at fault.

Other dialects of conversation are read into the same ChatRequest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from api.chat.messages import Message
from api.conversation.context_management import Applied, ContextManagement
from api.conversation.restoration import MissingReasoning
from api.conversation.simulated_tools import read_markers
from api.errors import from_validation, invalid, unsupported
from api.facts import ModelFacts
from api.generation_request import (
    GenerationRequest,
    answer_format,
    checked_model,
    common_values,
    read_fields,
    refuse_unhonoured,
    warn_of_unknown,
)
from api.grammar.answers import AnswerDemand
from api.grammar.formats import AnswerFormat
from api.grammar.schema import SchemaError, check_limits
from api.history import continued, read_history
from api.profiles import check_thinking
from api.sampling import (
    MAX_TOP_LOGPROBS,
    checked_max_tokens,
    read_sampling,
    reasoning_limit,
    within,
)
from api.schema import HARMLESS, KNOWN, REFUSED, ChatCompletionRequest
from api.tools import call_demand, read_tool_choice, read_tools


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
    continues, messages = continued(request)
    return ChatRequest(
        model=model,
        messages=read_history(messages),
        message_paths=tuple(f"messages[{index}]" for index in range(len(request.messages))),
        functions=functions,
        may_call=may_call,
        one_call=one_call,
        answer=AnswerDemand.of(calls, format_, continues=continues),
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
        context_management=checked_management(request.context_management, facts),
        lenient_tool_calls=request.lenient_tool_calls,
        sampling=read_sampling(
            request,
            facts,
            max_tokens=checked_max_tokens(
                {
                    # The newer name wins over its deprecated alias.
                    "max_completion_tokens": request.max_completion_tokens,
                    "max_tokens": request.max_tokens,
                },
                facts,
            ),
            logprobs=_logprobs(request),
            # The tools stay in the prompt, so that its prefix is the same for every tool_choice.
            forbidden_token_ids=facts.call_token_ids if functions and not may_call else (),
        ),
        **common_values(request),
    )


def checked_management(
    rule: ContextManagement | None, facts: ModelFacts
) -> ContextManagement | None:
    """Returns the rule. Raises ApiError(400) for a value out of range."""
    if rule is not None:
        rule.check(facts.max_model_len)
    return rule


def _logprobs(request: ChatCompletionRequest) -> int | None:
    if request.top_logprobs is not None:
        within(request.top_logprobs, 0, MAX_TOP_LOGPROBS, "top_logprobs")
        if not request.logprobs:
            raise invalid("top_logprobs needs logprobs: true.", "top_logprobs")
    return (request.top_logprobs or 0) if request.logprobs else None


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


def _refuse_what_is_not_honoured(request: ChatCompletionRequest, fields: Mapping[str, Any]) -> None:
    refuse_unhonoured(fields, REFUSED)
    warn_of_unknown(fields, KNOWN | HARMLESS | REFUSED)
    if request.modalities is not None and request.modalities != ["text"]:
        raise unsupported("modalities", "Output other than text")


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
