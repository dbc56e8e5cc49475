"""Plays held-out cases: generates, parses, runs the simulated tools, and grades."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from api.chat.encoding import Encoder
from api.chat.events import ContentDelta, ParseFailure, ToolArguments, ToolCallStart
from api.chat.messages import Message, ToolCall
from api.chat.parser import OutputParser
from training.tasks.case import Case, calls_of, holds

Generate = Callable[[Sequence[list[int]], int], list[list[int]]]
"""(prompts as token ids, most new tokens) -> generated token ids, the end token included."""
MAX_NEW_TOKENS = 96


class Outcome(msgspec.Struct):
    """How one case went."""

    task: str
    thinking: bool
    prompt_tokens: int
    """Tokens of the first prompt of the graded turn."""
    right: bool = False
    said: str = ""
    """What the model answered, or how it failed."""


class _Episode:
    """The state of one case while it is played."""

    def __init__(self, case: Case, thinking: bool) -> None:
        self.case, self.messages = case, case.given
        self.remaining = list(case.turns[-1].replies)
        self.outcome = Outcome(case.task, thinking, 0)
        self.open = True

    def close(self, right: bool, said: str) -> None:
        self.open, self.outcome.right, self.outcome.said = False, right, said

    def receive(self, reply: Message | None, text: str) -> None:
        """Grades one generated message; a right call gets the case's simulated result."""
        wanted = self.remaining.pop(0)
        if reply is None:
            self.close(False, text)
        elif wanted.tool_calls:
            if calls_of(reply) != calls_of(wanted):
                self.close(False, text)
                return
            count = len(wanted.tool_calls)
            self.messages += [wanted_ids(reply, wanted), *self.remaining[:count]]
            self.remaining = self.remaining[count:]
        else:
            right = not reply.tool_calls and holds(reply.content, self.case.turns[-1].expected)
            self.close(right, text)


def wanted_ids(reply: Message, wanted: Message) -> Message:
    """The generated message with the call ids that the simulated results refer to."""
    calls = tuple(
        ToolCall(expected.id, made.name, made.arguments)
        for made, expected in zip(reply.tool_calls, wanted.tool_calls, strict=True)
    )
    return msgspec.structs.replace(reply, tool_calls=calls)


def parse_reply(text: str, thinking: bool, tools: bool) -> Message | None:
    """The message in a generated text, by the server's own parser; None if it is malformed."""
    parser = OutputParser(in_reasoning=thinking, tools=tools)
    content, calls = "", {}
    reasoning = ""
    for event in [*parser.feed(text), *parser.finish("stop")]:
        if isinstance(event, ContentDelta):
            content += event.text
        elif isinstance(event, ToolCallStart):
            calls[event.index] = [event.id, event.name, ""]
        elif isinstance(event, ToolArguments):
            calls[event.index][2] += event.text
        elif isinstance(event, ParseFailure):
            return None
        elif hasattr(event, "text"):
            reasoning += event.text
    made = tuple(ToolCall(*calls[index]) for index in sorted(calls))
    return Message("assistant", content, reasoning if thinking else None, made)


def play(cases: Sequence[tuple[Case, bool]], encoder: Encoder, generate: Generate) -> list[Outcome]:
    """Plays all (case, thinking) pairs side by side and returns their outcomes in order."""
    episodes = [_Episode(case, thinking) for case, thinking in cases]
    while True:
        running = [episode for episode in episodes if episode.open]
        if not running:
            return [episode.outcome for episode in episodes]
        prompts = [
            encoder.encode(
                one.messages, tools=one.case.tools or None, thinking=one.outcome.thinking
            ).token_ids
            for one in running
        ]
        for one, prompt, ids in zip(
            running, prompts, generate(prompts, MAX_NEW_TOKENS), strict=True
        ):
            one.outcome.prompt_tokens = one.outcome.prompt_tokens or len(prompt)
            ended = bool(ids) and ids[-1] == encoder.eos_token_id
            text = encoder.tokenizer.decode(ids[:-1] if ended else ids, skip_special_tokens=False)
            reply = parse_reply(text, one.outcome.thinking, bool(one.case.tools))
            one.receive(reply if ended else None, text)
