"""The training model computes what transformers computes, dense and sparse."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.checkpoints import random_weights, tiny_config
from tests.parity import load_transformers, run_transformers
from training import attention
from training.attention import AttentionMode
from training.config import ModelConfig
from training.export import stack_experts
from training.model import Context, DeepseekV32, visible_keys

LENGTH = 60


@pytest.mark.parametrize("mode", ["dense", "sparse"])
@pytest.mark.parametrize("block", [16, 256])
def test_logits_equal_those_of_transformers(
    mode: AttentionMode, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "QUERY_BLOCK", block)
    fields = tiny_config()
    weights = random_weights(fields)
    tokens = torch.randint(8, 320, (LENGTH,), generator=torch.Generator().manual_seed(5)).tolist()
    reference = load_transformers(tmp_path, fields, weights)
    expected = run_transformers(reference, tokens, [LENGTH], dense=mode == "dense")

    config = ModelConfig.from_hf(fields)
    model = DeepseekV32(config)
    model.load_state_dict(stack_experts(weights, config))
    ids = torch.tensor([tokens])
    context = Context(config, mode, True, torch.float32)
    with torch.no_grad():
        hidden, _ = model(ids, torch.arange(LENGTH)[None], torch.zeros_like(ids), context)
        logits = model.logits(hidden, torch.float32)[0]
    torch.testing.assert_close(logits, expected.logits, atol=5e-4, rtol=0)


def test_documents_of_one_row_do_not_see_each_other() -> None:
    fields = tiny_config()
    config = ModelConfig.from_hf(fields)
    model = DeepseekV32(config)
    model.load_state_dict(stack_experts(random_weights(fields), config))
    first, second = torch.arange(10, 30), torch.arange(50, 75)
    context = Context(config, "sparse", True, torch.float32)
    positions = torch.cat((torch.arange(20), torch.arange(25)))[None]
    documents = torch.cat((torch.zeros(20), torch.ones(25)))[None].long()
    with torch.no_grad():
        packed, _ = model(torch.cat((first, second))[None], positions, documents, context)
        alone, _ = model(second[None], torch.arange(25)[None], torch.zeros(1, 25).long(), context)
    torch.testing.assert_close(packed[:, 20:], alone, atol=1e-4, rtol=0)


def test_visible_keys_are_causal_and_of_the_same_document() -> None:
    visible = visible_keys(torch.tensor([[0, 0, 1]]))[0].tolist()
    assert visible == [[True, False, False], [True, True, False], [False, False, True]]


def test_mtp_layer_predicts_from_the_next_embedding_and_the_hidden_state() -> None:
    config = ModelConfig.from_hf(tiny_config())
    torch.manual_seed(0)
    model = DeepseekV32(config)
    ids = torch.randint(0, 320, (1, 12))
    positions, documents = torch.arange(12)[None], torch.zeros(1, 12).long()
    context = Context(config, "dense", True, torch.float32)
    with torch.no_grad():
        hidden, _ = model(ids, positions, documents, context)
        before, _ = model.predict_next(hidden, ids, positions, documents, context)
        changed = ids.clone()
        changed[0, 6] = (ids[0, 6] + 1) % 320
        after, _ = model.predict_next(hidden, changed, positions, documents, context)
    assert before.shape == (1, 11, config.hidden_size)
    moved = (before != after).any(-1)[0]
    assert not moved[:5].any() and moved[5]
