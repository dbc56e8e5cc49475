"""The input of a response -> the messages of a chat completion.

What the model said comes back as separate items, in the order it came in: reasoning, a message,
calls. Together they are one assistant message again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from api.chat.messages import parse_arguments
from api.errors import invalid, unsupported
from api.responses.schema import ItemParam, PartParam

TEXT_PARTS = ("input_text", "output_text", "text", "reasoning_text", "refusal")


class Conversation(NamedTuple):
    """Chat messages as they would stand in a request, and the item that each began with."""

    messages: list[dict[str, Any]]
    paths: list[str]


def read_input(instructions: str | None, items: str | Sequence[ItemParam]) -> Conversation:
    """Returns the conversation of a request. Raises ApiError(400) naming the item at fault.

    A call that the model did not finish (`status: incomplete`) is left out, with its output: it
    never was one.
    """
    if isinstance(items, str):
        items = [ItemParam(role="user", content=items)]
    if not items:
        raise invalid("input must hold at least one item.", "input", "empty_array")
    reader = _Reader()
    if instructions:
        reader.add({"role": "system", "content": instructions}, "instructions")
    for index, item in enumerate(items):
        reader.read(item, f"input[{index}]")
    return reader.found


class _Reader:
    """Reads items one by one; the assistant message they belong to stays open."""

    def __init__(self) -> None:
        self.found = Conversation([], [])
        self._assistant: dict[str, Any] | None = None
        self._unfinished_calls: set[str] = set()

    def add(self, message: dict[str, Any], path: str) -> None:
        self._assistant = message if message["role"] == "assistant" else None
        self.found.messages.append(message)
        self.found.paths.append(path)

    def read(self, item: ItemParam, path: str) -> None:
        match item.type or "message":
            case "message":
                self._message(item, path)
            case "reasoning":
                self._reasoning(item, path)
            case "function_call":
                self._call(item, path)
            case "function_call_output":
                self._result(item, path)
            case "item_reference":
                raise unsupported(f"{path}.type", "A reference to an item: nothing is stored; it")
            case other:
                raise unsupported(f"{path}.type", f"An item of type {other!r}")

    def _message(self, item: ItemParam, path: str) -> None:
        if item.role is None:
            raise invalid("A message needs a role.", f"{path}.role", "missing_required_parameter")
        if item.content is None:
            raise invalid(
                "A message needs content.", f"{path}.content", "missing_required_parameter"
            )
        text = _text(item.content, f"{path}.content")
        if item.role != "assistant":
            self.add({"role": item.role, "content": text}, path)
            return
        said = self._said(path)
        if "content" in said and "tool_calls" not in said:
            said = self._open(path)
        # Text after a call belongs to its message: results must follow the calls at once.
        said["content"] = said.get("content", "") + text

    def _reasoning(self, item: ItemParam, path: str) -> None:
        said = self._said(path)
        if "content" in said or "tool_calls" in said:
            said = self._open(path)
        if item.content is not None:
            text = _text(item.content, f"{path}.content")
            said["reasoning_content"] = said.get("reasoning_content", "") + text

    def _call(self, item: ItemParam, path: str) -> None:
        call_id = _required(item.call_id, "call_id", path)
        name = _required(item.name, "name", path)
        arguments = (item.arguments or "").strip() or "{}"
        try:
            parse_arguments(arguments)
        except ValueError as error:
            if item.status == "incomplete":
                self._unfinished_calls.add(call_id)
                return
            raise invalid(
                f"The arguments must be a JSON object: {error}.", f"{path}.arguments"
            ) from error
        function = {"name": name, "arguments": arguments}
        said = self._said(path)
        said.setdefault("tool_calls", []).append({"id": call_id, "function": function})

    def _result(self, item: ItemParam, path: str) -> None:
        call_id = _required(item.call_id, "call_id", path)
        if call_id in self._unfinished_calls:
            return
        text = _text(item.output or "", f"{path}.output")
        self.add({"role": "tool", "tool_call_id": call_id, "content": text}, path)

    def _said(self, path: str) -> dict[str, Any]:
        """The open assistant message."""
        return self._open(path) if self._assistant is None else self._assistant

    def _open(self, path: str) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant"}
        self.add(message, path)
        return message


def _required(value: str | None, name: str, path: str) -> str:
    if not value:
        raise invalid(f"The item needs a {name}.", f"{path}.{name}", "missing_required_parameter")
    return value


def _text(content: str | Sequence[PartParam], path: str) -> str:
    """Returns the text of the content, its parts joined without separators."""
    if isinstance(content, str):
        return content
    texts = []
    for index, part in enumerate(content):
        if part.type not in TEXT_PARTS:
            raise unsupported(f"{path}[{index}].type", f"A content part of type {part.type!r}")
        field = "refusal" if part.type == "refusal" else "text"
        text = part.refusal if field == "refusal" else part.text
        if text is None:
            raise invalid(
                f"A part of type {part.type!r} needs its {field}.",
                f"{path}[{index}].{field}",
                "missing_required_parameter",
            )
        texts.append(text)
    return "".join(texts)
