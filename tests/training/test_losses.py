"""Which loss teaches which weights."""

from __future__ import annotations

import pytest
import torch

from tests.checkpoints import tiny_config
from training.attention import AttentionMode
from training.config import ModelConfig
from training.data import Batch
from training.losses import stage_loss, token_loss
from training.model import Context, DeepseekV32


def _model() -> DeepseekV32:
    torch.manual_seed(0)
    model = DeepseekV32(ModelConfig.from_hf(tiny_config()))
    with torch.no_grad():
        for parameter in model.parameters():  # output projections start at zero: no gradient
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def _batch() -> Batch:
    ids = torch.randint(0, 320, (2, 40), generator=torch.Generator().manual_seed(1))
    positions = torch.arange(40).expand(2, 40)
    return Batch(ids, positions, torch.ones_like(ids), torch.ones(2, 40))


def _with_gradient(model: DeepseekV32) -> set[str]:
    return {
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
    }


@pytest.mark.parametrize("mode", ["warmup", "sparse"])
def test_index_loss_reaches_only_the_indexer(mode: AttentionMode) -> None:
    model, batch = _model(), _batch()
    context = Context(model.config, mode, True, torch.float32)
    _, index = model(batch.token_ids, batch.positions, batch.documents, context)
    index.backward()
    reached = _with_gradient(model)
    assert reached and all(".indexer." in name for name in reached)
    layers = range(model.config.num_hidden_layers)
    assert {f"model.layers.{one}.self_attn.indexer.wk.weight" for one in layers} <= reached


def test_language_modelling_does_not_reach_the_indexer() -> None:
    model, batch = _model(), _batch()
    context = Context(model.config, "sparse", True, torch.float32)
    hidden, _ = model(batch.token_ids, batch.positions, batch.documents, context)
    token_loss(model, hidden, batch, 1, 0, torch.float32).backward()
    reached = _with_gradient(model)
    assert "model.layers.0.self_attn.kv_b_proj.weight" in reached
    assert not any(".indexer." in name for name in reached)


def test_warmup_trains_every_indexer_and_nothing_else() -> None:
    model, batch = _model(), _batch()
    context = Context(model.config, "warmup", True, torch.float32)
    total, _, _ = stage_loss(
        model, batch, context, mtp_weight=0.1, mtp_rows=1, model_learns=False, phase=0
    )
    total.backward()
    reached = _with_gradient(model)
    assert all(".indexer." in name for name in reached)
    assert f"model.layers.{model.config.num_hidden_layers}.self_attn.indexer.wk.weight" in reached


def test_targets_of_other_documents_and_padding_do_not_count() -> None:
    model = _model()
    ids = torch.randint(0, 320, (1, 6))
    documents = torch.tensor([[1, 1, 2, 2, 0, 0]])
    weights = torch.ones(1, 6)
    batch = Batch(ids, torch.arange(6)[None], documents, weights)
    hidden = torch.randn(1, 6, model.config.hidden_size, requires_grad=True)
    token_loss(model, hidden, batch, 1, 0, torch.float32).backward()
    assert hidden.grad is not None
    used = hidden.grad.abs().sum(-1)[0] > 0
    assert used.tolist() == [True, False, True, False, False, False]
