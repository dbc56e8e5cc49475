"""The engine against transformers' DeepseekV32ForCausalLM, in float32 on random models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from scheduler.plan import Form
from tests.checkpoints import random_weights, tiny_config
from tests.parity import load_transformers, parity, run_engine, run_transformers

MODELS: dict[str, dict[str, Any]] = {
    "top 8, 16 index heads": {
        "index_topk": 8,
        "index_n_heads": 16,
        "index_head_dim": 64,
        "qk_rope_head_dim": 32,
    },
    "top 16, 8 index heads": {},
    "top 64, 32 index heads": {
        "index_topk": 64,
        "index_n_heads": 32,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "num_hidden_layers": 4,
        "first_k_dense_replace": 2,
        "n_routed_experts": 16,
        "topk_group": 3,
        "num_experts_per_tok": 4,
        "n_shared_experts": 2,
    },
    "no yarn": {"rope_scaling": None},
}
PROMPT_TOKENS = {"top 64, 32 index heads": 300}

CHUNKS = (64, 1, 30, 7)
"""Then the rest: chunks that end on a page, inside a page, and hold one token."""


class Case:
    """One random model in transformers and as weights, and a prompt many times its top-k."""

    def __init__(self, name: str, folder: Path) -> None:
        self.fields = tiny_config(num_nextn_predict_layers=0, **MODELS[name])
        seed = list(MODELS).index(name)
        self.weights = random_weights(self.fields, seed)
        length = PROMPT_TOKENS.get(name, 150)
        generator = torch.Generator().manual_seed(seed)
        self.tokens: list[int] = torch.randint(0, 320, (length,), generator=generator).tolist()
        self.theirs = load_transformers(folder, self.fields, self.weights)

    @property
    def chunks(self) -> list[int]:
        return [*CHUNKS, len(self.tokens) - sum(CHUNKS)]


@pytest.fixture(scope="module", params=MODELS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(request.param, tmp_path_factory.mktemp("checkpoint"))


def assert_parity(case: Case, chunks: list[int], forms: list[Form]) -> None:
    """Transformers runs freely in `chunks`; the engine follows its selections in `forms`."""
    expected = run_transformers(case.theirs, case.tokens, chunks)
    steps = [[(0, count, form)] for count, form in zip(chunks, forms, strict=True)]
    forced = [expected.selected]
    found = run_engine(case.fields, case.weights, [case.tokens], steps, forced=forced)[0]
    result = parity(expected, found)
    assert result.compared_rows == len(case.tokens) * case.fields["num_hidden_layers"]
    assert result.holds, result


def decode_forms(form: Form, tokens: int) -> list[Form]:
    return [form] * tokens


@pytest.mark.parametrize("form", ["masked_mha", "mqa"])
def test_one_shot_prefill(case: Case, form: Form) -> None:
    assert_parity(case, [len(case.tokens)], [form])


@pytest.mark.parametrize("form", ["masked_mha", "mqa"])
def test_chunked_prefill(case: Case, form: Form) -> None:
    assert_parity(case, case.chunks, [form] * len(case.chunks))


def test_token_by_token_decode(case: Case) -> None:
    prompt = len(case.tokens) - 40
    chunks = [prompt] + [1] * 40
    assert_parity(case, chunks, ["masked_mha", *decode_forms("mqa", 40)])


def test_decode_from_the_first_token(case: Case) -> None:
    length = len(case.tokens)
    assert_parity(case, [1] * length, decode_forms("mqa", length))


@pytest.mark.parametrize("schedule", ["one shot", "chunks", "decode"])
def test_dense_attention(case: Case, schedule: str) -> None:
    length = len(case.tokens)
    forms: list[Form]
    if schedule == "one shot":
        chunks, forms = [length], ["mha"]
    elif schedule == "chunks":
        chunks, forms = case.chunks, ["mha", "dense_mqa", "dense_mqa", "mha", "mha"]
    else:
        chunks, forms = [length - 20] + [1] * 20, ["mha", *decode_forms("dense_mqa", 20)]
    expected = run_transformers(case.theirs, case.tokens, chunks, dense=True)
    steps = [[(0, count, form)] for count, form in zip(chunks, forms, strict=True)]
    found = run_engine(case.fields, case.weights, [case.tokens], steps, select=False)[0]
    result = parity(expected, found)
    assert result.compared_rows == 0, "dense attention must not score"
    assert result.holds, result


def test_dense_and_sparse_differ(case: Case) -> None:
    """Otherwise the tests above would pass without an indexer."""
    length = len(case.tokens)
    sparse = run_transformers(case.theirs, case.tokens, [length])
    dense = run_transformers(case.theirs, case.tokens, [length], dense=True)
    top_k = case.fields["index_topk"]
    difference = (sparse.logits - dense.logits).abs().amax(dim=-1)
    assert difference[:top_k].max() < 1e-4
    assert difference[top_k:].median() > 0.1


def damaged(weights: dict[str, Tensor], damage: str) -> dict[str, Tensor]:
    """The weights with one detail forgotten, as a faulty loader would."""
    forgotten = {
        "index key bias": ("k_norm.bias", 0.0),
        "index key norm": ("k_norm.weight", 1.0),
        "latent norm": ("kv_a_layernorm.weight", 1.0),
        "query norm": ("q_a_layernorm.weight", 1.0),
        "final norm": ("model.norm.weight", 1.0),
        "selection bias": ("e_score_correction_bias", 0.0),
    }
    ending, value = forgotten[damage]
    return {
        name: torch.full_like(weight, value) if name.endswith(ending) else weight
        for name, weight in weights.items()
    }


@pytest.mark.parametrize(
    "damage",
    [
        "index key bias",
        "index key norm",
        "latent norm",
        "query norm",
        "final norm",
        "selection bias",
    ],
)
def test_a_forgotten_weight_is_seen(case: Case, damage: str) -> None:
    length = len(case.tokens)
    expected = run_transformers(case.theirs, case.tokens, [length])
    weights = damaged(case.weights, damage)
    steps: list[list[tuple[int, int, Form]]] = [[(0, length, "masked_mha")]]
    forced = [expected.selected]
    found = run_engine(case.fields, weights, [case.tokens], steps, forced=forced)[0]
    assert found.logits.isfinite().all()
    assert not parity(expected, found).holds
