"""Language-modelling losses: next token, and the token after it (MTP)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from training.data import Batch
from training.model import Context, DeepseekV32

PROMPT_STRIDE = 4
"""Only every fourth prompt token is a target: the vocabulary product is dear on a CPU."""
TARGET_ROWS = 128
"""Targets are padded to a multiple of this with targets of weight 0: new shapes are dear, too."""


def token_loss(
    model: DeepseekV32, hidden: Tensor, batch: Batch, ahead: int, phase: int, dtype: torch.dtype
) -> Tensor:
    """Weighted mean cross-entropy (fp32 scalar) of the tokens `ahead` places later.

    hidden is fp32 [B, T', D]. Targets of another document do not count. Of the prompt tokens those
    whose index is `phase` modulo PROMPT_STRIDE count, with their weight multiplied accordingly.
    """
    length = min(hidden.shape[1], batch.token_ids.shape[1] - ahead)
    rows = hidden.shape[0]
    target = batch.token_ids[:rows, ahead : ahead + length]
    weight = batch.weights[:rows, ahead : ahead + length].clone()
    document = batch.documents[:rows]
    weight[document[:, ahead : ahead + length] != document[:, :length]] = 0.0
    weight[document[:, :length] == 0] = 0.0
    sampled = torch.arange(length) % PROMPT_STRIDE == phase % PROMPT_STRIDE
    weight = torch.where(weight < 1.0, weight * sampled * PROMPT_STRIDE, weight)
    flat = weight.flatten()
    chosen = flat.nonzero().squeeze(1)
    spare = -len(chosen) % TARGET_ROWS
    chosen = torch.cat((chosen, (flat == 0).nonzero().squeeze(1)[:spare]))
    logits = model.logits(hidden[:, :length].flatten(0, 1)[chosen], dtype)
    losses = F.cross_entropy(logits, target.flatten()[chosen], reduction="none")
    return (losses * flat[chosen]).sum() / flat.sum().clamp_min(1.0)


def stage_loss(
    model: DeepseekV32,
    batch: Batch,
    context: Context,
    *,
    mtp_weight: float,
    mtp_rows: int,
    model_learns: bool,
    phase: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """(total, next-token loss, index loss), fp32 scalars.

    The MTP loss is taken on the first `mtp_rows` rows. With `model_learns` off, the indexer
    warm-up, only the index loss counts and the model's own forward pass keeps no graph.
    """
    hidden, index = model(batch.token_ids, batch.positions, batch.documents, context)
    rows = max(mtp_rows, 1)

    def next_layer() -> tuple[Tensor, Tensor]:
        tokens, positions, documents, _ = (part[:rows] for part in batch)
        return model.predict_next(hidden[:rows], tokens, positions, documents, context)

    if not model_learns:
        _, next_index = next_layer()
        with torch.no_grad():
            main = token_loss(model, hidden, batch, 1, phase, context.dtype)
        return index + next_index, main, index
    main = token_loss(model, hidden, batch, 1, phase, context.dtype)
    total = main + index
    if mtp_weight > 0:
        predicted, next_index = next_layer()
        total = total + mtp_weight * token_loss(model, predicted, batch, 2, phase, context.dtype)
        total = total + next_index
    return total, main, index
