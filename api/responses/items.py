"""Pieces of an answer -> output items: one open at a time, their indexes dense from 0."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from api.choice import Choice
from api.response import ChunkChoice, TokenLogprob, ToolCallDelta
from api.responses.events import (
    ArgumentsDelta,
    ArgumentsDone,
    Event,
    ItemAdded,
    ItemDone,
    PartAdded,
    PartDone,
    ReasoningDelta,
    ReasoningDone,
    TextDelta,
    TextDone,
)
from api.responses.schema import (
    FunctionCallItem,
    Item,
    MessageItem,
    OutputText,
    ReasoningItem,
    ReasoningText,
    Status,
)

Kind = Literal["reasoning", "message"] | int
"""What an item is; of a call its index among the calls."""


class Items:
    """The output of one choice: what is done, and the item that still grows."""

    def __init__(self, name: str, choice: Choice) -> None:
        """name: part of every item's id."""
        self.done: list[Item] = []
        self._name = name
        self._choice = choice
        self._open: _Reasoning | _Message | _Call | None = None

    def feed(self, piece: ChunkChoice) -> list[Event]:
        """Returns the events of a piece; the last piece closes what is open."""
        logprobs = [] if piece.logprobs is None else piece.logprobs.content
        events: list[Event] = []
        for kind, text, call in _parts(piece):
            if self._open is None or self._open.kind != kind:
                events += self._close("completed")
                events += self._begin(kind, call)
            if text and self._open is not None:
                events += self._open.add(text, logprobs)
        if piece.finish_reason is not None:
            cut = piece.finish_reason == "length"
            if isinstance(self._open, _Message) and logprobs:
                events += self._open.add("", logprobs)
            events += self._close("incomplete" if cut else "completed")
            if not cut and all(isinstance(item, ReasoningItem) for item in self.done):
                events += self._begin("message") + self._close("completed")
        return events

    def _begin(self, kind: Kind, call: ToolCallDelta | None = None) -> list[Event]:
        index = len(self.done)
        if call is not None:
            self._open = _Call(call, f"fc_{self._name}_{index}", index)
        elif kind == "reasoning":
            self._open = _Reasoning(f"rs_{self._name}_{index}", index)
        else:
            self._open = _Message(f"msg_{self._name}_{index}", index)
        return self._open.begin()

    def _close(self, status: Status) -> list[Event]:
        if self._open is None:
            return []
        item, self._open = self._open, None
        if isinstance(item, _Call):
            # Whatever came after it: only the model can finish a call.
            status = "completed" if item.kind in self._choice.complete_calls else "incomplete"
        self.done.append(item.whole(status))
        return [*item.end(status), ItemDone(output_index=item.index, item=self.done[-1])]


def _parts(piece: ChunkChoice) -> Iterator[tuple[Kind, str, ToolCallDelta | None]]:
    delta = piece.delta
    if isinstance(delta.reasoning_content, str) and delta.reasoning_content:
        yield "reasoning", delta.reasoning_content, None
    if isinstance(delta.content, str) and delta.content:
        yield "message", delta.content, None
    for call in delta.tool_calls or ():
        yield call.index, call.function.arguments, call


class _Reasoning:
    kind: Kind = "reasoning"

    def __init__(self, item_id: str, index: int) -> None:
        self.id, self.index = item_id, index
        self._texts: list[str] = []

    def whole(self, status: Status) -> ReasoningItem:
        return ReasoningItem(id=self.id, content=[self._part()], status=status)

    def begin(self) -> list[Event]:
        item = ReasoningItem(id=self.id, content=[], status="in_progress")
        part = ReasoningText("")
        return [
            ItemAdded(output_index=self.index, item=item),
            PartAdded(item_id=self.id, output_index=self.index, part=part),
        ]

    def add(self, text: str, logprobs: Sequence[TokenLogprob]) -> list[Event]:
        self._texts.append(text)
        return [ReasoningDelta(item_id=self.id, output_index=self.index, delta=text)]

    def end(self, status: Status) -> list[Event]:
        part = self._part()
        return [
            ReasoningDone(item_id=self.id, output_index=self.index, text=part.text),
            PartDone(item_id=self.id, output_index=self.index, part=part),
        ]

    def _part(self) -> ReasoningText:
        return ReasoningText("".join(self._texts))


class _Message:
    kind: Kind = "message"

    def __init__(self, item_id: str, index: int) -> None:
        self.id, self.index = item_id, index
        self._texts: list[str] = []
        self._logprobs: list[TokenLogprob] = []

    def whole(self, status: Status) -> MessageItem:
        return MessageItem(id=self.id, content=[self._part()], status=status)

    def begin(self) -> list[Event]:
        item = MessageItem(id=self.id, content=[], status="in_progress")
        part = OutputText("")
        return [
            ItemAdded(output_index=self.index, item=item),
            PartAdded(item_id=self.id, output_index=self.index, part=part),
        ]

    def add(self, text: str, logprobs: Sequence[TokenLogprob]) -> list[Event]:
        self._texts.append(text)
        self._logprobs += logprobs
        return [
            TextDelta(item_id=self.id, output_index=self.index, delta=text, logprobs=list(logprobs))
        ]

    def end(self, status: Status) -> list[Event]:
        part = self._part()
        return [
            TextDone(
                item_id=self.id,
                output_index=self.index,
                text=part.text,
                logprobs=part.logprobs,
            ),
            PartDone(item_id=self.id, output_index=self.index, part=part),
        ]

    def _part(self) -> OutputText:
        return OutputText("".join(self._texts), logprobs=self._logprobs)


class _Call:
    def __init__(self, call: ToolCallDelta, item_id: str, index: int) -> None:
        assert isinstance(call.id, str) and isinstance(call.function.name, str)
        self.kind: Kind = call.index
        self.id, self.index = item_id, index
        self._call_id, self._name = call.id, call.function.name
        self._texts: list[str] = []

    def whole(self, status: Status) -> FunctionCallItem:
        return FunctionCallItem(
            id=self.id,
            call_id=self._call_id,
            name=self._name,
            arguments="".join(self._texts),
            status=status,
        )

    def begin(self) -> list[Event]:
        return [ItemAdded(output_index=self.index, item=self.whole("in_progress"))]

    def add(self, text: str, logprobs: Sequence[TokenLogprob]) -> list[Event]:
        self._texts.append(text)
        return [ArgumentsDelta(item_id=self.id, output_index=self.index, delta=text)]

    def end(self, status: Status) -> list[Event]:
        if status == "incomplete":
            return []
        item = self.whole(status)
        return [
            ArgumentsDone(
                item_id=self.id,
                output_index=self.index,
                name=item.name,
                arguments=item.arguments,
            )
        ]
