"""Models that the property tests of the cost model run over, and a table of operator times."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import strategies as st

from cost_model.machines import MACHINES
from cost_model.measured import FORMAT, VERSION, Measured, OperatorTimes
from cost_model.model import CostModel
from cost_model.paper import Paper
from cost_model.roofline import Roofline
from cost_model.shape import V31, V32

TINY = msgspec.structs.replace(
    V32,
    name="tiny",
    vocab_size=3072,
    hidden_size=256,
    num_hidden_layers=4,
    first_k_dense_replace=1,
    intermediate_size=512,
    moe_intermediate_size=128,
    n_routed_experts=16,
    num_experts_per_tok=4,
    num_attention_heads=16,
    q_lora_rank=128,
    kv_lora_rank=128,
    qk_nope_head_dim=32,
    qk_rope_head_dim=32,
    v_head_dim=32,
    index_n_heads=8,
    index_topk=64,
)


def table(**changed: Any) -> dict[str, Any]:
    """The content of a valid table of operator times, with some fields changed."""
    content = {
        "format": FORMAT,
        "version": VERSION,
        "machine": "a machine of the tests",
        "date": "2026-11-22",
        "versions": {"winnow": "0.1.0"},
        "model": "v3.2",
        "fallback_machine": "h800",
        "step_seconds": 0.003,
        "prefill": {
            "routed_experts": {"context_tokens": [0], "seconds": [4e-5]},
            "core_attention.masked_mha": {"context_tokens": [0, 8192], "seconds": [0, 8e-5]},
            "core_attention.mqa": {"context_tokens": [0, 2048, 9999], "seconds": [0, 6e-5, 6e-5]},
        },
        "decode": {
            "communication": {"context_tokens": [0], "seconds": [3e-5]},
            "indexer": {"context_tokens": [1000, 2000, 4000], "seconds": [2e-6, 3e-6, 9e-6]},
        },
    }
    return content | changed


def measured(**changed: Any) -> Measured:
    """Preset `measured` over `table`."""
    return Measured(msgspec.convert(table(**changed), OperatorTimes))


MODELS: dict[str, CostModel] = {
    "paper v3.1": Paper(V31),
    "paper v3.2": Paper(V32),
    **{f"roofline v3.2 {name}": Roofline(V32, machine) for name, machine in MACHINES.items()},
    "roofline v3.1": Roofline(V31),
    "roofline tiny cpu": Roofline(TINY, MACHINES["cpu"]),
    "measured": measured(),
}

models = st.sampled_from(sorted(MODELS)).map(MODELS.__getitem__)
phases = st.sampled_from(["prefill", "decode"])
positions = st.integers(0, 200_000)
prices = st.floats(0.01, 100)
