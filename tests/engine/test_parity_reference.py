"""The engine against our own float64 model, and the negative controls that give it teeth."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from scheduler.plan import Form
from tests.checkpoints import random_weights, tiny_config
from tests.parity import (
    LOGIT_TOLERANCE,
    SCORE_MARGIN,
    load_transformers,
    parity,
    run_engine,
    run_transformers,
)
from tests.reference_model import ReferenceModel, Sabotage, Trace

FIELDS = tiny_config(num_nextn_predict_layers=0)
WEIGHTS = random_weights(FIELDS, seed=5)
TOP_K = FIELDS["index_topk"]
LAYERS = FIELDS["num_hidden_layers"]


def random_tokens(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    tokens: list[int] = torch.randint(0, 320, (length,), generator=generator).tolist()
    return tokens


TOKENS = random_tokens(150)


@pytest.fixture(scope="module")
def expected() -> Trace:
    return ReferenceModel(FIELDS, WEIGHTS)(TOKENS)


def run_one(
    trace: Trace,
    *steps: tuple[int, Form],
    fields: dict[str, Any] = FIELDS,
    tokens: list[int] = TOKENS,
    fp8_caches: bool = False,
) -> Trace:
    """The engine on one sequence, forced to the selections of `trace`."""
    plan: list[list[tuple[int, int, Form]]] = [[(0, count, form)] for count, form in steps]
    weights = random_weights(fields, seed=5)
    forced = [trace.selected]
    return run_engine(fields, weights, [tokens], plan, forced=forced, fp8_caches=fp8_caches)[0]


def test_the_reference_agrees_with_transformers(expected: Trace, tmp_path: Path) -> None:
    theirs = load_transformers(tmp_path, FIELDS, WEIGHTS)
    found = run_transformers(theirs, TOKENS, [len(TOKENS)], forced=expected.selected)
    result = parity(expected, found)
    assert result.compared_rows == len(TOKENS) * LAYERS
    assert result.holds, result


@pytest.mark.parametrize("form", ["masked_mha", "mqa"])
def test_one_shot_prefill(expected: Trace, form: Form) -> None:
    result = parity(expected, run_one(expected, (150, form)))
    assert result.compared_rows == len(TOKENS) * LAYERS
    assert result.holds, result


def test_forms_mixed_in_one_sequence(expected: Trace) -> None:
    forms: list[tuple[int, Form]] = [(33, "mqa"), (64, "masked_mha"), (1, "mqa"), (52, "mqa")]
    result = parity(expected, run_one(expected, *forms))
    assert result.holds, result


def test_index_keys_are_written_where_scoring_is_skipped(expected: Trace) -> None:
    """Rows within top-k run dense; the rows after them still score every earlier token."""
    forms: list[tuple[int, Form]] = [(TOP_K - 2, "mha"), (1, "dense_mqa"), (1, "dense_mqa")]
    found = run_one(expected, *forms, (100, "masked_mha"), (34, "mqa"))
    result = parity(expected, found)
    assert result.compared_rows == (len(TOKENS) - TOP_K) * LAYERS
    assert result.holds, result


def test_a_mixed_batch_of_prefill_and_decode() -> None:
    """Three sequences in the same steps: their lengths, forms and phases differ."""
    sequences = [random_tokens(70, 1), random_tokens(133, 2), random_tokens(20, 3)]
    expected = [ReferenceModel(FIELDS, WEIGHTS)(tokens) for tokens in sequences]
    steps: list[list[tuple[int, int, Form]]] = [
        [(0, 64, "masked_mha"), (2, 16, "mha")],
        [(1, 100, "masked_mha"), (0, 1, "mqa"), (2, 1, "mqa")],
        [(0, 1, "mqa"), (1, 29, "mqa"), (2, 1, "mqa")],
        [(1, 1, "mqa"), (0, 1, "mqa")],
        [(1, 1, "mqa"), (0, 1, "mqa"), (2, 1, "mqa")],
        [(1, 2, "mqa"), (0, 2, "masked_mha"), (2, 1, "mqa")],
    ]
    forced = [trace.selected for trace in expected]
    found = run_engine(FIELDS, WEIGHTS, sequences, steps, forced=forced)
    for trace, theirs in zip(expected, found, strict=True):
        result = parity(trace, theirs)
        assert result.compared_rows > 0
        assert result.holds, result


def test_dense_attention() -> None:
    trace = ReferenceModel(FIELDS, WEIGHTS)(TOKENS, dense=True)
    steps: list[list[tuple[int, int, Form]]] = [[(0, 100, "mha")], [(0, 49, "mha")]]
    steps += [[(0, 1, "dense_mqa")]]
    found = run_engine(FIELDS, WEIGHTS, [TOKENS], steps, select=False)[0]
    assert parity(trace, found).logits <= LOGIT_TOLERANCE


def test_a_model_with_interleaved_indexer_rope() -> None:
    fields = FIELDS | {"indexer_rope_interleave": True}
    trace = ReferenceModel(fields, WEIGHTS)(TOKENS)
    result = parity(trace, run_one(trace, (150, "masked_mha"), fields=fields))
    assert result.holds, result


INDEX_SABOTAGE = ("indexer rope interleaved", "relu after weight", "hadamard on keys only")


@pytest.mark.parametrize("sabotage", get_args(Sabotage))
def test_known_mistakes_break_parity(sabotage: Sabotage) -> None:
    wrong = ReferenceModel(FIELDS, WEIGHTS, sabotage=sabotage)(TOKENS)
    result = parity(wrong, run_one(wrong, (150, "masked_mha")))
    assert not result.holds
    if sabotage in INDEX_SABOTAGE:
        # Nothing but the selection shows it: at equal selections the logits agree.
        assert result.logits <= LOGIT_TOLERANCE
        assert result.wrong_selections > len(TOKENS)


@pytest.mark.parametrize("sabotage", INDEX_SABOTAGE)
def test_index_mistakes_are_invisible_within_top_k(sabotage: Sabotage) -> None:
    short = TOKENS[:TOP_K]
    right = ReferenceModel(FIELDS, WEIGHTS)(short)
    wrong = ReferenceModel(FIELDS, WEIGHTS, sabotage=sabotage)(short)
    assert torch.equal(right.logits, wrong.logits)


def test_the_engines_own_switch_breaks_parity(expected: Trace) -> None:
    swapped = FIELDS | {"indexer_rope_interleave": True}
    result = parity(expected, run_one(expected, (150, "masked_mha"), fields=swapped))
    assert not result.holds
    assert result.wrong_selections > len(TOKENS)


def test_selections_differ_only_next_to_the_kth_score(expected: Trace) -> None:
    """The margin is tight: the tolerated band around the k-th score is almost always empty."""
    for scores, selected in zip(expected.scores, expected.selected, strict=True):
        kth = scores.masked_fill(~selected, torch.inf).amin(dim=-1, keepdim=True)
        near = ((scores - kth).abs() <= SCORE_MARGIN).sum(dim=-1)
        assert (near[TOP_K:] > 1).float().mean() < 0.05


FP8_FIELDS = tiny_config(num_nextn_predict_layers=0, kv_lora_rank=128, index_head_dim=64)


@pytest.mark.parametrize("form", ["masked_mha", "mqa"])
def test_fp8_caches_round_as_the_reference_rounds(form: Form) -> None:
    """A value on a rounding border may fall either way, so the typical difference is held."""
    weights = random_weights(FP8_FIELDS, seed=5)
    exact = ReferenceModel(FP8_FIELDS, weights)(TOKENS)
    rounded = ReferenceModel(FP8_FIELDS, weights, fp8_caches=True)
    trace = rounded(TOKENS, forced=exact.selected)
    found = run_one(exact, (100, form), (50, form), fields=FP8_FIELDS, fp8_caches=True)
    for layer in range(LAYERS):
        visible = exact.scores[layer] > -torch.inf
        ours = (found.scores[layer].double() - trace.scores[layer])[visible].abs().median()
        rounding = (exact.scores[layer] - trace.scores[layer])[visible].abs().median()
        assert ours < 0.02 * rounding
    ours = (found.logits.double() - trace.logits).abs().median()
    rounding = (exact.logits - trace.logits).abs().median()
    assert ours < 0.05 * rounding
