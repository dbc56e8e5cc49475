"""A streamed chat answer, put together from the chunks of OpenAI's format and its relatives."""

from __future__ import annotations

from typing import Any

import msgspec

DONE = b"[DONE]"


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct):
    index: int = 0
    id: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    finish_reason: str | None = None


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _OutputDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class Usage(msgspec.Struct):
    """Tokens, as the server counts them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _OutputDetails | None = None
    prompt_cache_hit_tokens: int | None = None

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that were found in the cache; 0 where the server does not say."""
        details = self.prompt_tokens_details
        cached = details.cached_tokens if details else None
        return self.prompt_cache_hit_tokens or 0 if cached is None else cached

    @property
    def reasoning_tokens(self) -> int:
        """Output tokens before the visible answer; 0 where the server does not say."""
        details = self.completion_tokens_details
        return (details.reasoning_tokens if details else None) or 0


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: Usage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Chunk).decode


class AnswerError(ValueError):
    """A stream that is no answer, or an error in the middle of one."""


class ToolCall(msgspec.Struct):
    """A call as it has come so far."""

    id: str = ""
    name: str = ""
    arguments: str = ""


class Answer:
    """What the model said."""

    def __init__(self) -> None:
        self.finish_reason = ""
        self.usage: Usage | None = None
        self.done = False
        """Whether the stream said that it is over."""
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: dict[int, ToolCall] = {}

    @property
    def content(self) -> str:
        return "".join(self._content)

    @property
    def reasoning(self) -> str:
        return "".join(self._reasoning)

    @property
    def tool_calls(self) -> list[ToolCall]:
        """In the order of their indices."""
        return [call for _, call in sorted(self._calls.items())]

    def take(self, data: bytes) -> bool:
        """Adds an event; returns whether it said anything: reasoning, content, part of a call.

        Raises AnswerError for what is not a chunk, and for an error that the server sends.
        """
        if data == DONE:
            self.done = True
            return False
        try:
            chunk = _decode(data)
        except msgspec.MsgspecError as error:
            raise AnswerError(f"an event that is no chunk of a chat answer: {error}") from None
        if chunk.error is not None:
            raise AnswerError(f"the server ended the stream with an error: {said_in(chunk.error)}")
        if chunk.usage is not None:
            self.usage = chunk.usage
        said = False
        for choice in chunk.choices:
            if choice.finish_reason:
                self.finish_reason = choice.finish_reason
            if choice.delta is not None:
                said |= self._add(choice.delta)
        return said

    def _add(self, delta: _Delta) -> bool:
        reasoning = delta.reasoning_content or delta.reasoning
        if reasoning:
            self._reasoning.append(reasoning)
        if delta.content:
            self._content.append(delta.content)
        for part in delta.tool_calls or ():
            call = self._calls.setdefault(part.index, ToolCall())
            call.id = call.id or part.id or ""
            if part.function is not None:
                call.name += part.function.name or ""
                call.arguments += part.function.arguments or ""
        return bool(reasoning or delta.content or delta.tool_calls)

    def message(self, *, with_reasoning: bool) -> dict[str, Any]:
        """Returns the assistant's message that the next request of a conversation holds."""
        message: dict[str, Any] = {"role": "assistant", "content": self.content}
        if with_reasoning and self._reasoning:
            message["reasoning_content"] = self.reasoning
        if self._calls:
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in self.tool_calls
            ]
        return message


def said_in(error: Any) -> str:
    """Returns the text of an error in OpenAI's form, or what there is of one."""
    if isinstance(error, dict):
        return str(error.get("message") or error)
    return str(error)
