"""What a group of GPUs holds, counted again by hand."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cost_model.capacity import PAGE_TOKENS, Capacity, capacity, weights_per_gpu
from cost_model.costs import usd_per_million
from cost_model.errors import CostError
from cost_model.machines import MACHINES, Machine
from cost_model.roofline import Roofline, RooflineChoices
from cost_model.shape import V31, V32
from cost_model.weights import weight_bytes

ROW_BYTES = 62 * (512 + 4 * 4 + 2 * 64 + 128 + 4)
"""One token of context with FP8 caches, MTP layer included: latent row and index key."""
EXPERT_BYTES = 3 * (2048 * 7168 + 4 * 16 * 56)
"""Three matrices of a routed expert, and a scale for each block of 128 x 128."""


def on_h800(**changed: Any) -> Capacity:
    arguments: dict[str, Any] = {"gpus": 16, "context": 65_536, "price": 2.0}
    arguments |= changed
    machine = MACHINES[arguments.pop("machine", "h800")]
    return capacity(arguments.pop("shape", V32), machine, **arguments)


def test_sixteen_h800_at_64k_by_hand() -> None:
    found = on_h800()
    usable = 72_000_000_000 - found.weight_bytes
    pages = usable // (ROW_BYTES * 64)
    assert found.bytes_per_token == ROW_BYTES
    assert found.pages == pages
    assert found.sequences == pages // 1024
    assert found.cache_bytes == pages * 64 * ROW_BYTES
    assert found.reserved_bytes == 8_000_000_000
    assert 50e9 < found.weight_bytes < 70e9


def test_experts_are_spread_and_the_rest_is_on_every_gpu() -> None:
    sizes = {gpus: weights_per_gpu(V32, gpus) for gpus in (1, 16, 32, 256)}
    experts = 59 * 256 * EXPERT_BYTES
    """58 layers and the MTP layer."""
    for gpus, size in sizes.items():
        assert sizes[1] - size == experts - experts // gpus
    assert sizes[1] == pytest.approx(688e9, rel=0.01)  # the checkpoint on the hub


def test_a_step_holds_all_sequences_and_its_price_is_that_of_its_batch() -> None:
    found = on_h800()
    choices = RooflineChoices(batch=found.sequences, tokens_per_read=1, expert_parallel_gpus=16)
    model = Roofline(V32, MACHINES["h800"], choices)
    usd = float(usd_per_million(model, "decode", 65_536, 2.0))
    assert found.usd_per_million_tokens == pytest.approx(usd)
    assert found.tokens_per_second == pytest.approx(found.sequences / found.step_seconds)
    assert found.tokens_per_second_all_gpus == pytest.approx(16 * found.tokens_per_second)
    # Price and rate say the same thing.
    assert 2 / 3600 / found.tokens_per_second * 1e6 == pytest.approx(usd)


def test_an_index_key_costs_pages_and_an_unquantised_cache_more() -> None:
    per_token = {
        "v3.2": on_h800().bytes_per_token,
        "v3.1": on_h800(shape=V31).bytes_per_token,
        "bf16": on_h800(latent_dtype="bf16", index_dtype="bf16").bytes_per_token,
    }
    assert per_token == {"v3.2": ROW_BYTES, "v3.1": 62 * 656, "bf16": 62 * 2 * (576 + 128)}


@settings(max_examples=30)
@given(st.integers(1, 131_072), st.integers(1, 131_072), st.integers(16, 512))
def test_longer_sequences_are_fewer_and_dearer(one: int, other: int, gpus: int) -> None:
    short, long = (on_h800(gpus=gpus, context=context) for context in sorted([one, other]))
    assert short.sequences >= long.sequences >= 1
    assert short.usd_per_million_tokens <= long.usd_per_million_tokens * (1 + 1e-9)
    assert short.pages == long.pages
    for found in (short, long):
        pages_each = -(-found.context_tokens // PAGE_TOKENS)
        assert found.sequences * pages_each <= found.pages < (found.sequences + 1) * pages_each


def test_more_gpus_leave_more_pages_on_each() -> None:
    pages = [on_h800(gpus=gpus).pages for gpus in (16, 32, 64)]
    assert pages == sorted(pages) and len(set(pages)) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gpus": 0}, "gpus is 0; allowed: 1 and above"),
        ({"gpus": 8}, r"gpus is 8; the weights take 1\d\d\.\d GB on each and h800 gives 72.0 GB"),
        ({"context": 0}, "context is 0; allowed: 1 token and above"),
        ({"context": 10**9}, r"context is 1000000000; allowed: at most \d+ tokens on 16 GPUs"),
        ({"price": -1}, "price is -1"),
        ({"memory_share": 0}, "memory share is 0; allowed: above 0, at most 1"),
        ({"memory_share": 1.01}, "memory share is 1.01"),
        (
            {"machine": "cpu"},
            "cpu was measured in float32 and allows: fp32",
        ),
    ],
)
def test_what_does_not_fit_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(CostError, match=message):
        on_h800(**arguments)


@pytest.mark.parametrize("machine", [one for one in MACHINES.values() if not one.measured])
@pytest.mark.parametrize(("gpus", "context"), [(16, 8192), (16, 65536), (32, 131072), (128, 4096)])
def test_a_step_is_no_quicker_than_reading_what_it_needs(
    machine: Machine, gpus: int, context: int
) -> None:
    """Weights of every GPU, the experts its tokens hit, latents and index keys, over bandwidth."""
    found = capacity(V32, machine, gpus=gpus, context=context, price=2.0)
    parts = weight_bytes(V32)
    everywhere = sum(size for name, size in parts.items() if name != "routed_experts")
    everywhere -= parts["embedding"] + parts["router"]
    hit = 256 / gpus * (1 - (1 - 8 / 256) ** (found.sequences * gpus))
    caches = found.sequences * 61 * (656 * min(context, 2048) + 132 * context)
    read = everywhere + 58 * hit * 44_050_944 + caches
    assert found.step_seconds >= 0.999 * read / machine.memory_bandwidth
