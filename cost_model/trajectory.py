"""What a tool loop costs, and what keeping, dropping or managing its reasoning changes.

A turn of n steps: the model reasons, calls a tool, reads the result, and so on; the last step ends
in an answer. Step i computes whatever of its prompt is not in the prefix cache, then decodes its
reasoning and its call (or answer).

    kept      the rule of DeepSeek-V3.2: reasoning stays until the next user message, so every step
              finds the whole history cached and computes the tool result only
    dropped   reasoning is removed after every step, as older models' templates do: what follows it
              has moved, so the last call and its result are computed again, without their reasoning
              in front; positions grow more slowly
    managed   as kept, but when the next step would leave the window, the first `discard` of the
              history of tool steps is dropped and the rest computed again (the report's
              "Discard-75%" for 0.75 and "Discard-all" for 1.0)

`dropped` assumes that the model reasons as long as if it still knew its earlier reasoning, which
flatters it: the report keeps reasoning because dropping it makes the model reason again.
Source: DeepSeek-V3.2 report, sections 3.2 and 4.4.
"""

from __future__ import annotations

from math import floor
from typing import Literal

import msgspec

from cost_model.costs import RequestCost, request_cost
from cost_model.errors import CostError
from cost_model.model import CostModel

Policy = Literal["kept", "dropped", "managed"]
POLICIES: tuple[Policy, ...] = ("kept", "dropped", "managed")


LONGEST_STEPS = 10_000
"""Each is summed over its own positions; more would take minutes."""


class ToolLoop(msgspec.Struct, frozen=True, kw_only=True):
    """Lengths in tokens; every step alike."""

    steps: int
    """Model calls: `steps` - 1 tool calls and the answer."""
    prompt: int = 2000
    """System text, tools and the user's message."""
    reasoning: int = 800
    call: int = 100
    """A tool call, or the answer."""
    tool_result: int = 4000
    window: int = 131072
    discard: float = 0.75
    """Share of the tool history that `managed` drops."""

    def __post_init__(self) -> None:
        for name in ("prompt", "reasoning", "call", "tool_result"):
            if getattr(self, name) < 0:
                raise CostError(f"{name} is {getattr(self, name)}; allowed: 0 and above, tokens")
        if not 1 <= self.steps <= LONGEST_STEPS:
            raise CostError(f"steps is {self.steps}; allowed: 1 to {LONGEST_STEPS}")
        if not 0 < self.discard <= 1:
            raise CostError(f"discard is {self.discard}; allowed: above 0, at most 1")
        needed = self.prompt + self.reasoning + self.call
        if self.steps > 1:
            needed += self.tool_result
        if needed > self.window:
            raise CostError(f"window is {self.window}; allowed: at least one step, {needed} tokens")


class LoopCost(msgspec.Struct, frozen=True, kw_only=True):
    """One tool loop under one policy."""

    policy: Policy
    steps: tuple[RequestCost, ...]
    complete: bool
    """False: the window was full before the last step."""

    @property
    def seconds(self) -> float:
        """GPU-seconds of all steps."""
        return sum(step.seconds for step in self.steps)

    @property
    def usd(self) -> float:
        """Dollars of all steps."""
        return sum(step.usd for step in self.steps)

    @property
    def computed_tokens(self) -> int:
        """Prompt tokens computed in all steps."""
        return sum(step.prompt_tokens - step.cached_tokens for step in self.steps)


def loop_cost(model: CostModel, loop: ToolLoop, policy: Policy, price: float) -> LoopCost:
    """The cost of `loop` under `policy`; ends early, `complete` False, where the window is full."""
    if policy not in POLICIES:
        raise CostError(f"policy is {policy!r}; allowed: {', '.join(POLICIES)}")
    said = loop.reasoning + loop.call
    kept_of_step = (loop.call if policy == "dropped" else said) + loop.tool_result
    done: list[RequestCost] = []
    context, cached = loop.prompt, 0
    for _ in range(loop.steps):
        if context + said > loop.window:
            if policy != "managed":
                break
            history = context - loop.prompt
            steps_kept = _steps_kept(history // kept_of_step, loop.discard)
            context = loop.prompt + steps_kept * kept_of_step
            cached = loop.prompt
        done.append(request_cost(model, context, cached, said, price))
        if policy == "dropped":
            cached = context
        else:
            cached = context + said
        context += kept_of_step
    return LoopCost(policy=policy, steps=tuple(done), complete=len(done) == loop.steps)


def _steps_kept(steps: int, discard: float) -> int:
    """Whole steps of the later share, never all; 0.9 of 10 leaves 1, whatever 0.9 is in binary."""
    return min(floor(steps * (1 - discard) + 1e-9), steps - 1)
