"""Context lengths around and beyond the published top-k of 2048, and the last position of 131,072.

The models are random and small in every dimension but these two.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from engine.batch import Batch, RowGroup
from engine.cache import CacheLayout, PagedCache
from engine.config import PAGE_TOKENS
from engine.model import DeepseekV32
from engine.model_config import ModelConfig
from engine.runner import Runner
from scheduler.plan import Form, NewSlot, Prepare, Row, StepPlan
from scheduler.request import Sampling
from tests.checkpoints import random_weights, tiny_config
from tests.parity import LOGIT_TOLERANCE, SCORE_MARGIN, parity, run_engine
from tests.reference_model import ReferenceModel

TOP_K = 2048
FIELDS = tiny_config(
    num_nextn_predict_layers=0,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    index_topk=TOP_K,
    index_head_dim=16,
)
WEIGHTS = random_weights(FIELDS, seed=7)


def random_tokens(length: int) -> list[int]:
    generator = torch.Generator().manual_seed(length)
    tokens: list[int] = torch.randint(0, 320, (length,), generator=generator).tolist()
    return tokens


@pytest.mark.parametrize(
    ("steps", "compared_rows"),
    [
        ([(2048, "mha")], 0),
        ([(2048, "masked_mha")], 2048),
        ([(2048, "mha"), (1, "mqa")], 1),
        ([(2000, "mha"), (49, "masked_mha")], 49),
        ([(2048, "mha"), (1500, "masked_mha"), (1448, "mqa"), (4, "mqa")], 2952),
    ],
    ids=["2048 dense", "2048 scored", "2049 decode", "2049 prefill", "5000"],
)
def test_context_around_the_published_top_k(
    steps: list[tuple[int, Form]], compared_rows: int
) -> None:
    length = sum(count for count, _ in steps)
    tokens = random_tokens(length)
    expected = ReferenceModel(FIELDS, WEIGHTS)(tokens)
    plan = [[(0, count, form)] for count, form in steps]
    found = run_engine(FIELDS, WEIGHTS, [tokens], plan, forced=[expected.selected])[0]
    result = parity(expected, found)
    assert result.compared_rows == compared_rows * FIELDS["num_hidden_layers"]
    assert result.holds, result
    for selected in found.selected:
        kept = torch.arange(1, length + 1).clamp(max=TOP_K)
        assert torch.equal(selected.sum(dim=-1), kept)


class LastQuery:
    """Records the scores and the choice of one query, and forces another choice on it."""

    def __init__(self, forced: Tensor) -> None:
        self.forced = forced
        self.scores = torch.empty(0)
        self.own = torch.empty(0)

    def selection(self, layer: int, slot: int, scores: Tensor, selected: Tensor) -> Tensor:
        self.scores, self.own = scores.clone(), selected.clone()
        return self.forced


def test_position_131071_is_computed_as_the_reference_computes_it() -> None:
    """The last token of a full context, of a one-layer model.

    With one layer, a token's latent and index key depend on nothing but the token and its
    position, so the context is written by queries that attend to one token each.
    """
    length = 131_072
    fields = FIELDS | {"num_hidden_layers": 1, "max_position_embeddings": length}
    yarn = {**FIELDS["rope_scaling"], "original_max_position_embeddings": 4096, "factor": 32}
    fields["rope_scaling"] = yarn
    weights = random_weights(fields, seed=9)
    tokens = random_tokens(length)
    expected = ReferenceModel(fields, weights)(tokens, last_queries=1)

    config = ModelConfig.from_json(fields)
    model = DeepseekV32(config, dict(weights))
    pages = length // PAGE_TOKENS
    layout = CacheLayout("float32", "float32")
    cpu = torch.device("cpu")
    cache = PagedCache(config, layout, pages, compute_dtype=torch.float32, device=cpu)
    for start in range(0, length - 1, 8192):
        positions = torch.arange(start, min(start + 8192, length - 1))
        group = RowGroup(
            form="mha",
            tokens=torch.arange(len(positions)),
            pages=torch.tensor([[0]]),
            visible=torch.ones(len(positions), dtype=torch.int64),
            slots=(0,),
        )
        model.forward(
            Batch(
                token_ids=torch.tensor(tokens)[positions],
                positions=positions,
                slots=positions,
                groups=(group,),
                sampled=torch.tensor([], dtype=torch.int64),
            ),
            cache,
        )

    (expected_scores,), (expected_mask,) = expected.scores, expected.selected
    last = LastQuery(expected_mask)
    runner = Runner(model, cache, probe=last)
    slot = NewSlot(
        slot=0,
        request_id="long",
        choice=0,
        token_ids=tokens,
        prompt_tokens=length,
        sampling=Sampling(max_tokens=1, temperature=0.0),
        pages=list(range(pages)),
    )
    row = Row(slot=0, start=length - 1, count=1, sample="last", form="mqa")
    result = runner.execute(StepPlan(step=0, rows=(row,), prepare=Prepare(new_slots=(slot,))))

    assert last.scores.shape == (1, length)
    assert (last.scores - expected_scores).abs().max() <= SCORE_MARGIN
    kth = expected_scores[expected_mask].min()
    assert ((expected_scores - kth).abs()[last.own ^ expected_mask] <= SCORE_MARGIN).all()
    assert last.own.sum() == TOP_K
    assert runner.logits is not None
    assert (expected.logits - runner.logits).abs().max() <= LOGIT_TOLERANCE
    assert result.token_ids == [int(expected.logits.argmax())]
