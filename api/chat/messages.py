"""The conversation as the prompt encoder sees it, and the checks it must pass first."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import msgspec

from api.chat.json_text import NOT_JSON, parse_json
from api.chat.markers import THINK_END, THINK_START
from scheduler.retention import keeps_reasoning, last_user_index

Role = Literal["system", "user", "assistant", "tool"]


class ToolCall(msgspec.Struct, frozen=True):
    """One call the assistant made. ``arguments`` is the JSON text of an object."""

    id: str
    name: str
    arguments: str


class Written(msgspec.Struct, frozen=True):
    """The token ids a model wrote in an assistant message; None: encode what the message says.

    To encode text again is lossy: other tokens may spell the same text, and JSON has many
    spellings. The tokens themselves keep the prompt, and its cached prefix, exact.
    """

    reasoning: tuple[int, ...] | None = None
    """Up to the rest; with ``</think>``, unless the model never wrote it."""
    rest: tuple[int, ...] | None = None
    """Content and calls, EOS included."""


class Message(msgspec.Struct, frozen=True):
    """One message. ``reasoning`` None means the client sent none; an empty string is an answer."""

    role: Role
    content: str = ""
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    written: Written | None = None
    """Set by the server for a message it has the tokens of; clients cannot send it."""
    continues_turn: bool = False
    """A user message that is the output of a tool the client only simulates: it ends no turn."""


class PromptError(ValueError):
    """A conversation that cannot be rendered. ``param`` names the field at fault (HTTP 400)."""

    def __init__(self, message: str, param: str, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


def last_user(messages: Sequence[Message]) -> int:
    """Returns the index of the last message that opened a turn, -1 when there is none."""
    return last_user_index(["tool" if m.continues_turn else m.role for m in messages])


def parse_arguments(arguments: str) -> dict[str, Any]:
    """Returns the object in ``arguments``, keys in order; of duplicate keys the last one holds.

    Raises ValueError when the text is not the JSON of an object, by the strict reading of
    :func:`api.chat.json_text.parse_json`.
    """
    value = parse_json(arguments)
    if not isinstance(value, dict):
        found = "malformed JSON" if value is NOT_JSON else f"JSON of type {_json_type(value)}"
        raise ValueError(f"found {found}")
    return value


def is_unicode(text: str) -> bool:
    """Returns whether the text can be encoded: JSON escapes can spell half a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def normalise_history(messages: Sequence[Message]) -> list[Message]:
    """Returns the conversation in the form that is rendered.

    Leading system messages become one, joined with two line feeds. A ``<think>`` block at the head
    of assistant content moves to ``reasoning``. Tool results stand in the order of their calls,
    which is their only link in the prompt.

    Raises PromptError for a tool history that cannot be ordered. Indexes name the messages as
    given, so call this with what the client sent. A last assistant message may have calls without
    results: it is a training target, and :func:`check_history` refuses it for generation.
    """
    leading = _leading_system_count(messages)
    normalised: list[Message] = []
    if leading:
        text = "\n\n".join(message.content for message in messages[:leading])
        normalised.append(Message("system", text))
    index = leading
    while index < len(messages):
        message = messages[index]
        if message.role == "tool":
            raise PromptError(
                "A tool message must follow an assistant message with tool_calls.",
                f"messages[{index}].role",
            )
        normalised.append(lift_inline_reasoning(message))
        index += 1
        if message.role == "assistant" and message.tool_calls and index < len(messages):
            results = _results_in_call_order(messages, index - 1)
            normalised.extend(results)
            index += len(results)
    return normalised


def check_history(messages: Sequence[Message], thinking: bool) -> None:
    """Changes nothing; raises PromptError when no generation prompt can be made of ``messages``.

    Refused: an empty list; a system message after another role; a last message that is neither
    from the user nor a tool result; a tool history that is not one result per call; arguments that
    are not a JSON object; text that is not Unicode; in thinking mode an assistant text message
    after the last user message without its reasoning.
    """
    if not messages:
        raise PromptError("messages must hold at least one message.", "messages")
    opens_turn = last_user(messages)
    leading = _leading_system_count(messages)
    for index, message in enumerate(messages):
        param = f"messages[{index}]"
        if message.role == "system" and index >= leading:
            raise PromptError(
                "A system message must stand before all other messages.", f"{param}.role"
            )
        for name, text in _texts(message):
            if not is_unicode(text):
                raise PromptError("The text holds an unpaired surrogate.", f"{param}.{name}")
        if message.role == "assistant":
            _check_calls(message, param)
            needs_reasoning = keeps_reasoning(index, opens_turn, thinking)
            if needs_reasoning and not message.tool_calls:
                _check_text_with_reasoning(message, param)
        elif message.tool_calls:
            raise PromptError(
                f"A {message.role} message cannot carry tool_calls.", f"{param}.tool_calls"
            )
    normalise_history(messages)
    last, param = messages[-1], f"messages[{len(messages) - 1}]"
    if last.role == "assistant" and last.tool_calls:
        raise PromptError(
            f"Tool call {last.tool_calls[0].id!r} has no result message.", f"{param}.tool_calls"
        )
    if last.role not in ("user", "tool"):
        raise PromptError(
            f"The last message must be a user message or a tool result, not {last.role}.",
            f"{param}.role",
        )


def lift_inline_reasoning(message: Message) -> Message:
    """Returns the message with a ``<think>`` block at the head of its content as its reasoning.

    Some clients replay reasoning that way. A block that repeats the given reasoning is removed; one
    that differs from it, or is never closed, stays in the content as plain text.
    """
    if message.role != "assistant" or not message.content.startswith(THINK_START):
        return message
    block, closer, content = message.content[len(THINK_START) :].partition(THINK_END)
    if not closer:
        return message
    if len(block) >= 2 and block.startswith("\n") and block.endswith("\n"):
        # The block stands on lines of its own: the line feeds around it are layout, not text.
        block = block[1:-1]
        content = content.removeprefix("\n").removeprefix("\n")
    given = message.reasoning
    if given is None or not given.strip():
        return msgspec.structs.replace(message, reasoning=block, content=content)
    if given.strip() == block.strip():
        return msgspec.structs.replace(message, content=content)
    return message


def _leading_system_count(messages: Sequence[Message]) -> int:
    count = 0
    while count < len(messages) and messages[count].role == "system":
        count += 1
    return count


def _results_in_call_order(messages: Sequence[Message], caller: int) -> list[Message]:
    """Returns the results of the calls of ``messages[caller]``, one per call, in call order."""
    calls = messages[caller].tool_calls
    call_ids = [call.id for call in calls]
    results: dict[str, Message] = {}
    index = caller + 1
    while index < len(messages) and messages[index].role == "tool":
        call_id, param = messages[index].tool_call_id, f"messages[{index}].tool_call_id"
        if call_id is None:
            raise PromptError("A tool message must name the call it answers.", param)
        if call_id not in call_ids:
            raise PromptError(f"No call of the message before has the id {call_id!r}.", param)
        if call_id in results:
            raise PromptError(f"The call {call_id!r} has a result already.", param)
        results[call_id] = messages[index]
        index += 1
    for call_id in call_ids:
        if call_id not in results:
            raise PromptError(
                f"Tool call {call_id!r} has no result message.", f"messages[{caller}].tool_calls"
            )
    return [results[call_id] for call_id in call_ids]


def _check_calls(message: Message, param: str) -> None:
    seen: set[str] = set()
    for position, call in enumerate(message.tool_calls):
        call_param = f"{param}.tool_calls[{position}]"
        if not call.id or call.id in seen:
            raise PromptError(
                f"Tool call ids must be unique and not empty, found {call.id!r}.",
                f"{call_param}.id",
            )
        seen.add(call.id)
        if not call.name:
            raise PromptError("The function name must not be empty.", f"{call_param}.function.name")
        if '"' in call.name:  # in a prompt it stands in quotes
            raise PromptError(
                f"The function name must have no quotes, found {call.name[:80]!r}.",
                f"{call_param}.function.name",
            )
        try:
            parse_arguments(call.arguments)
        except ValueError as error:
            raise PromptError(
                f"The arguments must be a JSON object: {error}.",
                f"{call_param}.function.arguments",
            ) from error


def _check_text_with_reasoning(message: Message, param: str) -> None:
    if lift_inline_reasoning(message).reasoning is None:
        raise PromptError(
            "In thinking mode an assistant message after the last user message needs its"
            " reasoning_content.",
            f"{param}.reasoning_content",
        )


def _texts(message: Message) -> Iterator[tuple[str, str]]:
    yield "content", message.content
    yield "reasoning_content", message.reasoning or ""
    for position, call in enumerate(message.tool_calls):
        yield f"tool_calls[{position}].function.name", call.name


def _json_type(value: object) -> str:
    names = {list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
