"""The cost model's FLOPs against products counted in real models, component by component."""

from __future__ import annotations

from collections import Counter
from typing import Any
from unittest import mock

import msgspec
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cost_model.errors import CostError
from cost_model.shape import V31, V32, ModelShape
from cost_model.work import (
    FORMS,
    CacheDtype,
    attended,
    attention_flops,
    cache_bytes_per_token,
    causal_pairs,
    computed_pairs,
    index_key_bytes,
    index_pair_flops,
    latent_row_bytes,
    linear_flops,
    linear_parameters,
    pair_flops,
    prefix_expansion_flops,
    read_bytes,
    selected_pairs,
)
from engine.cache import CacheLayout, PagedCache
from engine.config import PAGE_TOKENS
from engine.model_config import ModelConfig
from engine.runner import Runner
from scheduler.plan import StepPlan, StepResult
from tests.checkpoints import random_weights, tiny_config
from tests.cost_model.counting import (
    EMBEDDED,
    MORE_PRODUCTS,
    PUBLISHED,
    absorb,
    build,
    embedded_fields,
    epilogue_flops,
    run,
)
from tests.parity import Step, run_engine
from tests.reference_model import ReferenceModel

TINY = ModelShape.from_folder(EMBEDDED)
TOP_K = TINY.index_topk


@pytest.fixture(scope="module")
def expanded() -> Any:
    return build(embedded_fields(), "cpu")


@pytest.fixture(scope="module")
def absorbed() -> Any:
    return absorb(build(embedded_fields(), "cpu"))


@pytest.fixture(scope="module")
def absorbed_dense() -> Any:
    """Selects whatever is visible: the absorbed form over all latents."""
    return absorb(build(embedded_fields(index_topk=1 << 20), "cpu"))


def expected(
    shape: ModelShape, *, tokens: int, rows: int, core: float, scored: float, expansion: int = 0
) -> dict[str, float]:
    """FLOPs by component of `rows` rows of `tokens` tokens; the rest is per row."""
    linear = {name: rows * tokens * flops for name, flops in linear_flops(shape).items()}
    linear["head"] = rows * linear_flops(shape)["head"]
    linear["attention_projections"] += rows * expansion
    index = scored + scored / index_pair_flops(shape) * epilogue_flops(shape)
    return linear | {"core_attention": rows * core, "indexer": rows * index}


@pytest.mark.parametrize(
    ("context", "rows"), [(1, 1), (TOP_K - 1, 3), (TOP_K, 1), (TOP_K + 1, 2), (2 * TOP_K + 5, 3)]
)
def test_decode_in_the_absorbed_form(absorbed: Any, context: int, rows: int) -> None:
    work = attention_flops(TINY, "mqa", context)
    assert run(absorbed, context - 1, 1, rows)[1] == expected(
        TINY, tokens=1, rows=rows, core=float(work["core_attention"]), scored=float(work["indexer"])
    )
    assert attended(TINY, "mqa", context) == min(context, TOP_K)


def test_decode_over_all_latents(absorbed_dense: Any) -> None:
    context, rows = TOP_K + 9, 2
    work = attention_flops(TINY, "dense_mqa", context)
    # This model finds all keys by scoring them; the form itself asks no indexer.
    assert work["indexer"] == 0
    assert run(absorbed_dense, context - 1, 1, rows)[1] == expected(
        TINY,
        tokens=1,
        rows=rows,
        core=float(work["core_attention"]),
        scored=index_pair_flops(TINY) * context,
    )


@pytest.mark.parametrize(("start", "count"), [(0, 40), (0, 100), (50, 1), (50, 40)])
def test_prefill_in_the_expanded_forms(expanded: Any, start: int, count: int) -> None:
    """A plain product forms the rectangle of a chunk and its context; a mask only hides."""
    pairs = computed_pairs(start, count)
    assert pair_flops(TINY, "mha") == pair_flops(TINY, "masked_mha")
    assert run(expanded, start, count)[1] == expected(
        TINY,
        tokens=count,
        rows=1,
        core=pair_flops(TINY, "masked_mha") * pairs,
        scored=index_pair_flops(TINY) * pairs,
        expansion=prefix_expansion_flops(TINY, start),
    )


@pytest.mark.parametrize(("start", "count"), [(0, 40), (0, 100), (70, 30)])
def test_prefill_in_the_absorbed_form(absorbed: Any, start: int, count: int) -> None:
    """Every query gathers as many latents as the last one, up to top-k; nothing is expanded."""
    gathered = count * min(start + count, TOP_K)
    assert run(absorbed, start, count)[1] == expected(
        TINY,
        tokens=count,
        rows=1,
        core=pair_flops(TINY, "mqa") * gathered,
        scored=index_pair_flops(TINY) * computed_pairs(start, count),
    )
    if start >= TOP_K:
        assert gathered == selected_pairs(TINY, start, count)


@pytest.mark.parametrize("start", [0, TOP_K - 2])
def test_triangles_are_what_single_queries_form(absorbed: Any, start: int) -> None:
    """One query at a time nothing is hidden or padded: the pairs that the maths needs are left."""
    count = 4
    formed: Counter[str] = Counter()
    for position in range(start, start + count):
        formed += Counter(run(absorbed, position, 1)[1])
    assert formed["core_attention"] == pair_flops(TINY, "mqa") * selected_pairs(TINY, start, count)
    per_pair = index_pair_flops(TINY) + epilogue_flops(TINY)
    assert formed["indexer"] == per_pair * causal_pairs(start, count)
    positions = range(start + 1, start + count + 1)
    work = attention_flops(TINY, "mqa", list(positions))
    assert work["core_attention"].sum() == formed["core_attention"]
    assert work["indexer"].sum() == index_pair_flops(TINY) * causal_pairs(start, count)
    assert causal_pairs(start, count) <= computed_pairs(start, count)


def test_the_absorbed_model_is_the_same_model() -> None:
    model = build(embedded_fields(), "cpu").double()
    dense = absorb(build(embedded_fields(index_topk=1 << 20), "cpu").double())
    logits = run(model, TOP_K, 40, 2)[0]
    found = run(absorb(model), TOP_K, 40, 2)[0]
    # transformers' router and softmax are float32 in any model.
    torch.testing.assert_close(found, logits, atol=1e-4, rtol=0)
    assert (run(dense, TOP_K, 40, 2)[0] - logits).abs().max() > 0.05


def test_the_load_of_the_experts_changes_no_product(expanded: Any) -> None:
    """Nothing is dropped or padded to a capacity: tokens times experts per token, however uneven.

    So the count under a balanced router is the count under any.
    """
    chosen: list[torch.Tensor] = []
    gates = [layer.mlp.gate for layer in expanded.model.layers[TINY.first_k_dense_replace :]]
    hooks = [gate.register_forward_hook(lambda *a: chosen.append(a[2][2])) for gate in gates]
    biases = {
        "as it falls": torch.zeros(TINY.n_routed_experts),
        "always the same": torch.linspace(100, 0, TINY.n_routed_experts),
    }
    loads, counts = {}, {}
    try:
        for name, bias in biases.items():
            chosen.clear()
            with mock.patch.object(gates[0], "e_score_correction_bias", bias):
                counts[name] = run(expanded, 0, 48)[1]
            loads[name] = chosen[0].flatten().bincount(minlength=TINY.n_routed_experts)
    finally:
        for hook in hooks:
            hook.remove()
    assert loads["always the same"].tolist() == [48] * 4 + [0] * 12
    assert loads["as it falls"].max() < 48
    assert counts["as it falls"] == counts["always the same"]
    assert counts["as it falls"]["routed_experts"] == 48 * linear_flops(TINY)["routed_experts"]


def test_the_reference_model() -> None:
    """The float64 model written from the papers: one sequence, all pairs, a head for each token."""
    fields = tiny_config()
    shape = ModelShape.from_config(fields)
    model = ReferenceModel(fields, random_weights(fields))
    tokens = list(range(40))
    with FlopCounterMode(display=False) as counter:
        model(tokens)
    # Attention and indexer each form the query latent that they could share.
    again = 2 * shape.num_hidden_layers * shape.hidden_size * shape.q_lora_rank
    pairs = computed_pairs(0, len(tokens))
    assert counter.get_total_flops() == (
        len(tokens) * (sum(linear_flops(shape).values()) + again)
        + pairs * (pair_flops(shape, "masked_mha") + index_pair_flops(shape))
    )


def test_671b_on_the_meta_device() -> None:
    """All 61 layers, absorbed, over a prompt twice as long as top-k; no weight has a value."""
    count = 4096
    assert run(absorb(build(PUBLISHED, "meta")), 0, count)[1] == expected(
        V32,
        tokens=count,
        rows=1,
        core=pair_flops(V32, "mqa") * count * 2048,
        scored=index_pair_flops(V32) * computed_pairs(0, count),
    )


@pytest.mark.parametrize(("start", "count"), [(0, 2048), (131000, 72), (131071, 1)])
def test_671b_chunks_on_the_meta_device(start: int, count: int) -> None:
    """Two layers of the published widths, one dense and one of experts, in both forms."""
    fewer = {"num_hidden_layers": 2, "first_k_dense_replace": 1}
    shape = ModelShape.from_config(PUBLISHED | fewer)
    pairs = computed_pairs(start, count)
    scored = index_pair_flops(shape) * pairs
    model = build(PUBLISHED | fewer, "meta")
    assert run(model, start, count)[1] == expected(
        shape,
        tokens=count,
        rows=1,
        core=pair_flops(shape, "mha") * pairs,
        scored=scored,
        expansion=prefix_expansion_flops(shape, start),
    )
    core = pair_flops(shape, "mqa") * count * 2048
    found = run(absorb(model), start, count)[1]
    assert found == expected(shape, tokens=count, rows=1, core=core, scored=scored)
    if count == 1:
        assert core == attention_flops(shape, "mqa", start + 1)["core_attention"]


def test_totals_of_671b() -> None:
    """Published: 671 B parameters, 37 B active for a token."""
    assert ModelShape.from_config(PUBLISHED, "v3.2") == V32
    active = linear_parameters(V32)
    assert round(sum(active.values()) / 1e9, 2) == 37.48
    assert round((sum(active.values()) - active["head"]) / 1e9, 2) == 36.55
    assert linear_parameters(V31) == active | {"indexer_projections": 0}
    per_pair = {form: pair_flops(V32, form) / 61 for form in FORMS}
    assert per_pair == {"mha": 81920, "masked_mha": 81920, "mqa": 278528, "dense_mqa": 278528}
    assert index_pair_flops(V32) / 61 == 16384
    assert index_pair_flops(V31) == 0


CACHES = {"fp8": "fp8", "bf16": "bfloat16", "fp32": "float32"}


@pytest.mark.parametrize("dtype", CACHES)
@pytest.mark.parametrize("fields", [embedded_fields(), PUBLISHED], ids=["tiny", "671b"])
def test_cache_rows_are_as_long_as_the_engines(fields: dict[str, Any], dtype: CacheDtype) -> None:
    shape, config = ModelShape.from_config(fields), ModelConfig.from_json(fields)
    kind = CACHES[dtype]
    layout = msgspec.convert({"latent": kind, "index": kind}, CacheLayout)
    pages = 3
    cache = PagedCache(
        config, layout, pages, compute_dtype=torch.float32, device=torch.device("meta")
    )
    latents, keys = cache.latents.rows, cache.index_keys.pages
    tokens = pages * PAGE_TOKENS * shape.num_hidden_layers
    assert latents.nbytes == tokens * latent_row_bytes(shape, dtype)
    assert keys.nbytes == tokens * index_key_bytes(shape, dtype)
    per_token = cache_bytes_per_token(shape, dtype, dtype)
    assert latents.nbytes + keys.nbytes == pages * PAGE_TOKENS * per_token
    layers = shape.num_hidden_layers + 1
    with_mtp = cache_bytes_per_token(shape, dtype, dtype, mtp=True)
    assert with_mtp * shape.num_hidden_layers == per_token * layers
    context = 3 * shape.index_topk
    read = read_bytes(shape, "mqa", context, dtype, dtype)
    assert read["core_attention"] * 3 == latents.nbytes / (pages * PAGE_TOKENS) * context
    assert read["indexer"] == keys.nbytes / (pages * PAGE_TOKENS) * context


def test_cache_rows_of_671b() -> None:
    assert latent_row_bytes(V32, "fp8") == 656
    assert latent_row_bytes(V32, "bf16") == 1152
    assert index_key_bytes(V32, "fp8") == 132
    assert index_key_bytes(V31, "fp8") == 0
    assert cache_bytes_per_token(V32) == 61 * 788
    assert read_bytes(V32, "dense_mqa", 10_000, "bf16")["indexer"] == 0


@pytest.mark.parametrize("position", [-1, float("nan"), float("inf"), [0, -5]])
def test_absurd_positions_are_named(position: Any) -> None:
    with pytest.raises(CostError, match="position is"):
        attention_flops(V32, "mqa", position)


def test_absurd_forms_and_spans_are_named() -> None:
    form: Any = "gqa"
    with pytest.raises(CostError, match="'gqa'; allowed: mha"):
        pair_flops(V32, form)
    with pytest.raises(CostError, match="'gqa'; allowed: mha"):
        read_bytes(V32, form, 5)
    for pairs in (causal_pairs, computed_pairs):
        with pytest.raises(CostError, match="start is -1"):
            pairs(-1, 5)
        with pytest.raises(CostError, match="count is -2"):
            pairs(0, -2)


ENGINE_STEPS: dict[str, list[Step]] = {
    "prefill in chunks, dense": [[(0, 37, "mha")], [(0, 90, "mha")], [(0, 65, "mha")]],
    "prefill in chunks, masked": [[(0, 37, "masked_mha")], [(0, 155, "masked_mha")]],
    "prefill in chunks, absorbed": [[(0, 37, "mqa")], [(0, 155, "mqa")]],
    "decode, sparse": [[(0, 191, "mqa")], [(0, 1, "mqa")]],
    "decode, dense": [[(0, 191, "mha")], [(0, 1, "dense_mqa")]],
    "rows of different lengths": [
        [(0, 20, "mha"), (1, 130, "masked_mha")],
        [(0, 1, "mqa"), (1, 1, "mqa")],
        [(0, 1, "dense_mqa"), (1, 1, "dense_mqa")],
    ],
}


def engine_step_flops(step: Step, starts: list[int]) -> tuple[int, int]:
    """FLOPs that a step of the engine needs, and the most that its padded products form.

    Keys are read by whole pages, decode rows of one form padded to the longest of them, and top-k
    latents gathered though fewer may be visible. Hadamard rotations and the sums over index heads
    and experts may be products, which the cost model leaves out. A dense row needs index keys, but
    may form the head weights with them. Every token has logits.
    """
    linear = linear_flops(TINY)
    whole_indexer = linear.pop("indexer_projections")
    keys_only = 2 * TINY.num_hidden_layers * TINY.hidden_size * TINY.index_head_dim
    head_weights = 2 * TINY.num_hidden_layers * TINY.hidden_size * TINY.index_n_heads
    rotation = 2 * TINY.num_hidden_layers * TINY.index_head_dim**2
    combination = 2 * TINY.moe_layers * TINY.num_experts_per_tok * TINY.hidden_size
    needed = most = 0
    for slot, count, form in step:
        start = starts[slot]
        ends = [starts[other] + n for other, n, f in step if (n, f) == (1, form)]
        longest = max(ends) if count == 1 else start + count
        padded = count * -(-longest // PAGE_TOKENS) * PAGE_TOKENS
        gathered = min(padded, count * TOP_K) if form == "mqa" else padded
        selecting = form in ("mqa", "masked_mha")
        once = count * (sum(linear.values()) + (whole_indexer if selecting else keys_only))
        if form in ("mha", "masked_mha"):
            once += prefix_expansion_flops(TINY, start)
        needed += once
        most += once + count * (rotation + combination) + pair_flops(TINY, form) * gathered
        if selecting:
            needed += pair_flops(TINY, form) * selected_pairs(TINY, start, count)
            needed += index_pair_flops(TINY) * causal_pairs(start, count)
            most += (index_pair_flops(TINY) + epilogue_flops(TINY)) * padded
            most += count * TINY.index_n_heads * rotation
        else:
            needed += pair_flops(TINY, form) * causal_pairs(start, count)
            most += count * head_weights
    return needed, most


@pytest.mark.parametrize("name", ENGINE_STEPS)
def test_the_engine_forms_what_is_needed_and_little_more(name: str) -> None:
    steps = ENGINE_STEPS[name]
    rows = 1 + max(slot for step in steps for slot, _, _ in step)
    starts = [0] * rows
    lengths = [sum(n for step in steps for s, n, _ in step if s == row) for row in range(rows)]
    generator = torch.Generator().manual_seed(2)
    sequences = [
        torch.randint(TINY.vocab_size, (length,), generator=generator).tolist()
        for length in lengths
    ]
    formed: list[int] = []
    execute = Runner.execute

    def counted(runner: Runner, plan: StepPlan) -> StepResult:
        with FlopCounterMode(display=False, custom_mapping=MORE_PRODUCTS) as counter:
            result = execute(runner, plan)
        formed.append(counter.get_total_flops())
        return result

    fields = embedded_fields()
    with mock.patch.object(Runner, "execute", counted):
        run_engine(fields, random_weights(fields), sequences, steps)
    for step, flops in zip(steps, formed, strict=True):
        needed, most = engine_step_flops(step, starts)
        assert needed <= flops <= most, (step, needed, flops, most)
        for slot, count, _ in step:
            starts[slot] += count
