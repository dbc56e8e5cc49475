"""What a load is made of: workloads, in which proportion, and how long everything is."""

from __future__ import annotations

from random import Random
from typing import Literal, get_args

import msgspec

from loadtest.conversations import ConversationShape, Range, conversation
from loadtest.live.budgets import OUTPUT_TOKENS, QUESTION_TOKENS, Variant
from loadtest.live.scripts import Manner, Script, converse, think
from loadtest.live.text import Texts

Workload = Literal["chat", "long-context", "agent", "agent-dropping", "budget", "trace"]
WORKLOADS: tuple[Workload, ...] = get_args(Workload)

LENGTHS = (
    "user_tokens",
    "reasoning_tokens",
    "call_tokens",
    "tool_result_tokens",
    "answer_tokens",
)
LEAST_TOKENS = 8
"""What a length is not scaled below, unless it is 0."""

CHAT = ConversationShape(
    system_tokens=200,
    turns=(1, 4),
    tool_steps=(0, 0),
    user_tokens=(20, 1500),
    reasoning_tokens=(0, 0),
    answer_tokens=(50, 800),
)
LONG_CONTEXT = ConversationShape(
    system_tokens=100,
    turns=(1, 3),
    tool_steps=(0, 0),
    user_tokens=(8_000, 64_000),
    reasoning_tokens=(0, 0),
    answer_tokens=(100, 600),
)
AGENT = ConversationShape(turns=(1, 4), tool_steps=(1, 6))


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One workload of a profile."""

    workload: Workload
    weight: int
    """Of the sessions, beside the other parts'."""
    shape: ConversationShape | None = None
    thinking: bool = False
    echo: bool = True
    budget: Variant | None = None


class Profile(msgspec.Struct, frozen=True):
    """What `--profile` names."""

    about: str
    parts: tuple[Part, ...]


_CHAT = Part(workload="chat", weight=6, shape=CHAT)
_LONG = Part(workload="long-context", weight=1, shape=LONG_CONTEXT)
_AGENT = Part(workload="agent", weight=2, shape=AGENT, thinking=True)
_DROPPING = Part(workload="agent-dropping", weight=1, shape=AGENT, thinking=True, echo=False)


def _budget(variant: Variant) -> tuple[Part, ...]:
    return (Part(workload="budget", weight=1, thinking=True, budget=variant),)


PROFILES = {
    "mixed": Profile("chat, long context and agents", (_CHAT, _LONG, _AGENT, _DROPPING)),
    "chat": Profile("users who talk for a few turns", (_CHAT,)),
    "long-context": Profile("questions about 8,000 to 64,000 tokens of text", (_LONG,)),
    "agents": Profile(
        "tool loops, their reasoning echoed by half of the clients and dropped by the others",
        (_AGENT, msgspec.structs.replace(_DROPPING, weight=2)),
    ),
    "v3.2": Profile("hard questions with the token budgets of V3.2", _budget("v3.2")),
    "speciale": Profile("the same questions with those of V3.2-Speciale", _budget("speciale")),
}


class Scale(msgspec.Struct, frozen=True):
    """How a profile is made smaller, for a machine or a model that is."""

    lengths: float = 1.0
    times: float = 1.0
    """Of users who think and tools that run."""

    def shape(self, shape: ConversationShape) -> ConversationShape:
        """Returns the shape with its lengths and times at this scale."""
        changed: dict[str, object] = {name: self.range(getattr(shape, name)) for name in LENGTHS}
        return msgspec.structs.replace(
            shape,
            system_tokens=self.tokens(shape.system_tokens),
            think_median_s=shape.think_median_s * self.times,
            tool_median_s=shape.tool_median_s * self.times,
            **changed,
        )

    def range(self, lengths: Range) -> Range:
        low, high = lengths
        return self.tokens(low), self.tokens(high)

    def tokens(self, tokens: int) -> int:
        return max(min(tokens, LEAST_TOKENS), round(tokens * self.lengths))


def script(
    part: Part, scale: Scale, texts: Texts, manner: Manner, *, seed: int, session: int
) -> Script:
    """Returns what the `session`-th session of a part says; the same numbers say the same."""
    manner = msgspec.structs.replace(manner, thinking=part.thinking, echo=part.echo)
    key = (part.workload, seed, session)
    if part.budget is not None:
        budgets = OUTPUT_TOKENS[part.budget]
        # The same question, whichever budget it is given.
        benchmark = Random(f"{seed} {session}").choice(sorted(budgets))
        budget_tokens = scale.tokens(budgets[benchmark])
        return think(scale.tokens(QUESTION_TOKENS), budget_tokens, texts, manner, *key)
    assert part.shape is not None, part.workload
    shape = scale.shape(part.shape)
    # Number 0 would be met in the middle of its life, with a history nobody has.
    talk = conversation(shape, seed, session, 1)
    return converse(talk, shape.system_tokens, texts, manner, *key)
