"""A tool loop that outgrows the window: which of its steps the model goes on without.

The window is W tokens. When a prompt of a tool loop is longer than `trigger` times W, steps of the
running turn are dropped (`discard_all`, `discard_75`) or put into words (`summary`). A step is an
assistant message with everything up to the next one; steps are never split. The system message, the
tools and all up to the last user message stay.

The client sends the whole history every time. So the history is played from its start: after every
step the prompt is measured as it was then, and what was decided then is decided again.

Source: DeepSeek-V3.2 report, section 4.4. It leaves open what a step is, what stays, and how a
summary is asked for; those are Winnow's choices.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from math import inf
from typing import Any, Literal, NamedTuple

import msgspec
from msgspec import UNSET, UnsetType

from api.chat.encoding import Encoder
from api.chat.messages import Message, last_user, normalise_history
from api.errors import invalid

Strategy = Literal["discard_all", "discard_75", "summary"]

DISCARDED_SHARE = (3, 4)
"""Of the complete steps, by `discard_75`; at least one."""
MAX_SUMMARIES = 64
"""In one turn: each is measured with the whole prompt that holds it."""
SUMMARY_HEADING = "\n\nWhat was done so far, in summary:\n"
"""Between the user's message and the summary that continues it."""
_NOBODY = Message("user", "")


class ContextManagement(msgspec.Struct, frozen=True):
    """The request's field."""

    strategy: Strategy
    trigger: float = 0.8
    """Share of the window above which steps go."""
    max_resets: int | None = None
    """How often in one turn; then the prompt grows until the window ends it."""
    reserved_tokens: int = 0
    """Room for the answer, counted as if it were prompt."""

    @property
    def most_resets(self) -> float:
        most = inf if self.max_resets is None else self.max_resets
        return min(most, MAX_SUMMARIES) if self.strategy == "summary" else most

    def check(self, max_model_len: int) -> None:
        """Changes nothing; raises ApiError(400) naming the value out of range."""
        if not 0.0 < self.trigger <= 1.0:
            raise invalid(
                f"trigger is {self.trigger}; it must be in (0, 1].", "context_management.trigger"
            )
        if self.max_resets is not None and self.max_resets < 0:
            raise invalid(
                f"max_resets is {self.max_resets}; it must be at least 0.",
                "context_management.max_resets",
            )
        if not 0 <= self.reserved_tokens < max_model_len:
            raise invalid(
                f"reserved_tokens is {self.reserved_tokens}; it must be in [0, {max_model_len}).",
                "context_management.reserved_tokens",
            )


class Applied(msgspec.Struct, frozen=True):
    """One reset, as it is reported."""

    strategy: Strategy
    removed_steps: int
    removed_tokens: int
    summary: str | UnsetType = UNSET


class ContextReport(msgspec.Struct, frozen=True):
    """Every reset of the running turn, in order; the client's history still holds all steps."""

    applied: list[Applied]


class Managed(NamedTuple):
    messages: list[Message]
    applied: list[Applied]


class SummaryNeeded(Exception):
    """There is no summary of `trajectory` yet; keep one under `key` and ask again."""

    def __init__(self, trajectory: list[Message], key: bytes) -> None:
        super().__init__("a summary is needed")
        self.trajectory, self.key = trajectory, key


class PromptSizes:
    """Tokens of prompts and of the steps in them."""

    def __init__(
        self,
        encoder: Encoder,
        tools: Sequence[Mapping[str, Any]] | None,
        thinking: bool,
        response_schema: Mapping[str, Any] | None = None,
    ) -> None:
        self._encoder, self._tools, self._thinking = encoder, tools, thinking
        self._response_schema = response_schema
        self._without_step = len(encoder.encode([_NOBODY], thinking=thinking).token_ids)

    def prompt(self, messages: Sequence[Message]) -> int:
        """Returns the length of the prompt these messages make."""
        prompt = self._encoder.encode(
            normalise_history(messages),
            tools=self._tools,
            response_schema=self._response_schema,
            thinking=self._thinking,
        )
        return len(prompt.token_ids)

    def step(self, messages: Sequence[Message]) -> int:
        """Returns what a step adds to a prompt: control tokens stand at its borders."""
        history = normalise_history([_NOBODY, *messages])
        with_it = len(self._encoder.encode(history, thinking=self._thinking).token_ids)
        return with_it - self._without_step

    def start(self, message: Message) -> int:
        """Returns what the beginning of an answer adds to the prompt that it ends."""
        prompt = self._encoder.encode([_NOBODY], thinking=self._thinking, started=message)
        return len(prompt.token_ids) - self._without_step


class Summaries:
    """Texts by key, bounded by bytes; what was not asked for longest goes first.

    The first text of a key stays: equal requests get equal prompts. Safe to use from several
    threads.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._texts: OrderedDict[bytes, str] = OrderedDict()
        self.size_bytes = 0
        self._lock = threading.Lock()

    def get(self, key: bytes) -> str | None:
        """Returns the summary, None when there is none."""
        with self._lock:
            text = self._texts.get(key)
            if text is not None:
                self._texts.move_to_end(key)
        return text

    def put(self, key: bytes, text: str) -> None:
        """Keeps the summary unless there is one."""
        with self._lock:
            if key in self._texts:
                return
            self._texts[key] = text
            self.size_bytes += _size_bytes(key, text)
            while self.size_bytes > self._limit_bytes and len(self._texts) > 1:
                self.size_bytes -= _size_bytes(*self._texts.popitem(last=False))


def manage(
    messages: Sequence[Message],
    rule: ContextManagement,
    sizes: PromptSizes,
    *,
    window_tokens: int,
    summary: Callable[[bytes], str | None],
    salt: str = "",
    started: Message | None = None,
) -> Managed:
    """Returns the conversation without the steps that `rule` drops, and what was dropped.

    summary: key -> text; salt: makes the keys of one owner; started: the beginning of the answer,
    which ends this prompt, and none of those before it. Raises SummaryNeeded.
    """
    messages = list(messages)
    # A prompt that fills the window leaves no room for the answer, whatever the trigger.
    limit_tokens = min(rule.trigger * window_tokens - rule.reserved_tokens, window_tokens - 1)
    started_tokens = 0 if started is None else sizes.start(started)
    opens_turn = last_user(messages)
    if opens_turn < 0 or sizes.prompt(messages) + started_tokens <= limit_tokens:
        return Managed(messages, [])
    protected, running = messages[: opens_turn + 1], messages[opens_turn + 1 :]
    question = protected[-1]
    steps = _steps(running)
    unfinished = steps.pop() if running and running[-1].role == "assistant" else []
    tokens_before = [0, *accumulate(map(sizes.step, steps))]
    base_tokens = sizes.prompt(protected)
    applied: list[Applied] = []
    first = 0
    for end in range(1, len(steps) + 1):
        end_tokens = tokens_before[end] + (started_tokens if end == len(steps) else 0)
        while first < end and base_tokens + end_tokens - tokens_before[first] > limit_tokens:
            if len(applied) >= rule.most_resets:
                break
            count = end - first
            if rule.strategy == "discard_75":
                share, whole = DISCARDED_SHARE
                count = max(1, share * count // whole)
            text: str | None = None
            if rule.strategy == "summary":
                trajectory = [*protected, *(m for step in steps[first:end] for m in step)]
                key = _key(trajectory, salt)
                text = summary(key)
                if text is None:
                    raise SummaryNeeded(trajectory, key)
                content = question.content + SUMMARY_HEADING + text
                protected[-1] = msgspec.structs.replace(question, content=content)
                base_tokens = sizes.prompt(protected)
            removed_tokens = tokens_before[first + count] - tokens_before[first]
            shown = UNSET if text is None else text
            applied.append(Applied(rule.strategy, count, removed_tokens, shown))
            first += count
    kept = [message for step in steps[first:] for message in step]
    return Managed([*protected, *kept, *unfinished], applied)


def _steps(running: Sequence[Message]) -> list[list[Message]]:
    steps: list[list[Message]] = []
    for message in running:
        if message.role == "assistant" or not steps:
            steps.append([])
        steps[-1].append(message)
    return steps


def _key(trajectory: Sequence[Message], salt: str) -> bytes:
    """What a summary depends on; the reasoning is gone when it is made."""
    bare = [msgspec.structs.replace(m, reasoning=None, written=None) for m in trajectory]
    return hashlib.sha256(msgspec.json.encode([salt, bare])).digest()


def _size_bytes(key: bytes, text: str) -> int:
    return len(key) + 4 * len(text)
