"""What the figure leaves out: what published systems reach, and what the network takes.

Tokens per second of published systems, turned into dollars, stand beside a preset. Prices are the
figure's, 2 USD per GPU-hour, and a node has 8 GPUs. All of them served V3 or R1, so they stand
beside V3.1.
"""

from __future__ import annotations

import msgspec

from cost_model.costs import dollars, usd_per_million
from cost_model.figure3 import PRICE
from cost_model.machines import NETWORK
from cost_model.model import CostModel, Phase
from cost_model.roofline import all_to_all_seconds
from cost_model.shape import V32

NODE_GPUS = 8
DAY_6 = "DeepSeek, open-infra-index, day 6: V3/R1 inference system (24 to 28 February 2025)"
LMSYS = "LMSYS: DeepSeek with PD disaggregation and large-scale EP on 96 H100 (5 May 2025)"


class System(msgspec.Struct, frozen=True, kw_only=True):
    """Published throughput of one phase."""

    name: str
    phase: Phase
    tokens_per_second_per_node: float
    """Prompt tokens in prefill, cache hits included; output tokens in decode."""
    cached_share: float = 0.0
    """Of the prompt tokens: found in the cache, so not computed."""
    mean_position: int
    """Where its tokens stand on average, which is all that a straight line asks for."""
    position_source: str
    source: str


class Beside(msgspec.Struct, frozen=True, kw_only=True):
    """One system's cost of computed tokens, and a preset's at the same mean position."""

    system: System
    usd_per_million_tokens: float
    preset_usd_per_million_tokens: float

    @property
    def ratio(self) -> float:
        """How many times the preset's cost the system took."""
        return self.usd_per_million_tokens / self.preset_usd_per_million_tokens


SYSTEMS = (
    System(
        name="DeepSeek's service",
        phase="prefill",
        tokens_per_second_per_node=73_700,
        cached_share=0.563,
        mean_position=4989,
        position_source="that of decode, for want of one of prefill",
        source=DAY_6,
    ),
    System(
        name="DeepSeek's service",
        phase="decode",
        tokens_per_second_per_node=14_800,
        mean_position=4989,
        position_source="published mean length of the cache",
        source=DAY_6,
    ),
    System(
        name="SGLang on 96 H100",
        phase="prefill",
        tokens_per_second_per_node=52_300,
        mean_position=1000,
        position_source="prompts of 2,000 tokens",
        source=LMSYS,
    ),
    System(
        name="SGLang on 96 H100",
        phase="decode",
        tokens_per_second_per_node=22_300,
        mean_position=2000,
        position_source="prompts of 2,000 tokens",
        source=LMSYS,
    ),
)


def beside(model: CostModel) -> tuple[Beside, ...]:
    """Every published system next to `model` at the system's mean position."""
    found = []
    for system in SYSTEMS:
        computed = system.tokens_per_second_per_node * (1 - system.cached_share)
        usd = dollars(NODE_GPUS / computed, PRICE) * 1e6
        own = usd_per_million(model, system.phase, system.mean_position, PRICE)
        found.append(
            Beside(
                system=system,
                usd_per_million_tokens=usd,
                preset_usd_per_million_tokens=float(own),
            )
        )
    return tuple(found)


class Floor(msgspec.Struct, frozen=True, kw_only=True):
    """What one token's dispatch and combine take on the network, if nothing hides them."""

    phase: Phase
    routing: str
    copies: float
    """Of the token, that leave the GPU."""
    bandwidth: float
    """Bytes per second of one GPU's network card."""
    source: str

    @property
    def seconds(self) -> float:
        """GPU-seconds of one token, all layers."""
        return all_to_all_seconds(V32, copies=self.copies, bandwidth=self.bandwidth)

    @property
    def usd_per_million_tokens(self) -> float:
        """At the figure's price."""
        return dollars(self.seconds, PRICE) * 1e6


FLOORS = (
    Floor(
        phase="prefill",
        routing="EP32, one copy to each of 4 nodes",
        copies=4,
        bandwidth=57.5e9,
        source="DeepEP README: high-throughput kernels, 57 to 58 GB/s",
    ),
    Floor(
        phase="decode",
        routing="EP128, one copy to each of 8 experts",
        copies=8,
        bandwidth=39e9,
        source="DeepEP README: low-latency kernels, 39 GB/s",
    ),
    Floor(
        phase="decode",
        routing="one copy to each of 4 nodes, at line rate",
        copies=4,
        bandwidth=NETWORK,
        source="DeepSeek-V3 report, section 2.1.2: at most 4 nodes; 400 Gb/s per GPU",
    ),
)
"""Beneath the fixed times of the presets, none of which adds it."""
