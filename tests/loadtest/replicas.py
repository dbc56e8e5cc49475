"""Small replicas and loads, so that a simulation takes moments."""

from __future__ import annotations

import msgspec

from cost_model.machines import MACHINES
from cost_model.shape import V32
from loadtest.agents import AgentSource
from loadtest.conversations import ConversationShape
from loadtest.replica import Replica, Settings, replica
from loadtest.traces import TraceRequest

SHORT = ConversationShape(
    system_tokens=700,
    turns=(2, 3),
    tool_steps=(1, 3),
    user_tokens=(20, 90),
    reasoning_tokens=(40, 90),
    call_tokens=(5, 20),
    tool_result_tokens=(100, 700),
    answer_tokens=(10, 40),
)
PATIENT = msgspec.structs.replace(
    SHORT, reasoning_tokens=(5, 20), tool_result_tokens=(300, 3000), think_median_s=60.0
)
"""Conversations that are idle most of the time."""


def small(
    *,
    pages: int = 4000,
    retention: bool = True,
    pre_warm: bool = True,
    queue_s: float = 10.0,
    inter_token_target_s: float = 0.05,
) -> Replica:
    """Eight H200 with few rows and pages."""
    settings = Settings(
        pages=pages,
        max_model_len=16_384,
        rows_per_gpu=4,
        retention=retention,
        pre_warm=pre_warm,
        queue_s=queue_s,
        inter_token_target_s=inter_token_target_s,
    )
    return replica(V32, MACHINES["h200"], 8, settings)


def few_agents(
    agents: int = 5, until_s: float = 60.0, shape: ConversationShape = SHORT
) -> AgentSource:
    return AgentSource(
        shape, agents=agents, seed=2, window_tokens=16_384, until_s=until_s, ramp_s=5.0
    )


def burst(
    requests: int, *, prompt_tokens: int, output_tokens: int = 4, every_s: float = 0.0
) -> list[TraceRequest]:
    """Requests that share nothing, one every so often."""
    return [
        TraceRequest(number * every_s, prompt_tokens, output_tokens) for number in range(requests)
    ]
