"""Multi-head latent attention in its MHA form, dense or restricted to what the indexer selects."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from training.config import ModelConfig
from training.indexer import Indexer, index_loss, select_top_k
from training.layers import Linear, RMSNorm, Rotation

AttentionMode = Literal["dense", "warmup", "sparse"]
QUERY_BLOCK = 256


class LatentAttention(nn.Module):
    """MLA with its lightning indexer; dense, dense with indexer warm-up, or sparse."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        heads = config.num_attention_heads
        self.q_a_proj = Linear(config.hidden_size, config.q_lora_rank)
        self.q_a_layernorm = RMSNorm(config.q_lora_rank, config.rms_norm_eps)
        self.q_b_proj = Linear(config.q_lora_rank, heads * config.qk_head_dim)
        latent_width = config.kv_lora_rank + config.qk_rope_head_dim
        self.kv_a_proj_with_mqa = Linear(config.hidden_size, latent_width)
        self.kv_a_layernorm = RMSNorm(config.kv_lora_rank, config.rms_norm_eps)
        expanded = config.qk_nope_head_dim + config.v_head_dim
        self.kv_b_proj = Linear(config.kv_lora_rank, heads * expanded)
        self.o_proj = Linear(heads * config.v_head_dim, config.hidden_size, gain=0.0)
        self.indexer = Indexer(config)

    def forward(
        self, hidden: Tensor, rotation: Rotation, visible: Tensor, scale: float, mode: AttentionMode
    ) -> tuple[Tensor, Tensor]:
        """(attention output [B, T, hidden], index loss: an fp32 scalar, zero in dense mode).

        hidden [B, T, hidden] is the normalised layer input; visible bool [B, T, T] allows causal
        keys of the same document; scale multiplies the logits.
        """
        config = self.config
        query_latent = self.q_a_layernorm(self.q_a_proj(hidden), hidden.dtype)
        query = self.q_b_proj(query_latent, scale).unflatten(-1, (config.num_attention_heads, -1))
        query_nope, query_rope = query.split((config.qk_nope_head_dim, config.qk_rope_head_dim), -1)
        latent, key_rope = self.kv_a_proj_with_mqa(hidden).split(
            (config.kv_lora_rank, config.qk_rope_head_dim), -1
        )
        latent = self.kv_a_layernorm(latent, hidden.dtype)
        expanded = self.kv_b_proj(latent).unflatten(-1, (config.num_attention_heads, -1))
        key_nope, value = expanded.split((config.qk_nope_head_dim, config.v_head_dim), -1)
        key_rope = rotation.interleaved(key_rope.unsqueeze(2)).expand_as(query_rope)
        query = torch.cat((query_nope, rotation.interleaved(query_rope)), -1)
        key = torch.cat((key_nope, key_rope), -1)
        index = None
        if mode != "dense":
            index = self.indexer.project(hidden.detach(), query_latent.detach(), rotation)
        output, loss = self._attend(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), visible, mode, index
        )
        return self.o_proj(output.transpose(1, 2).flatten(2)), loss

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        visible: Tensor,
        mode: AttentionMode,
        index: tuple[Tensor, Tensor, Tensor] | None,
    ) -> tuple[Tensor, Tensor]:
        """Attention by blocks of queries, so that no block multiplies keys that lie after it."""
        if query.shape[2] <= QUERY_BLOCK and index is None:
            bias = torch.where(visible, 0.0, -1e9).to(query.dtype).unsqueeze(1)
            weights = torch.softmax((query @ key.transpose(-1, -2)).add_(bias), dim=-1)
            return weights @ value, torch.zeros(())
        outputs: list[Tensor] = []
        loss = torch.zeros(())
        length = query.shape[2]
        for start in range(0, length, QUERY_BLOCK):
            end = min(start + QUERY_BLOCK, length)
            allowed = visible[:, start:end, :end]
            scores = None
            if index is not None:
                index_query, index_key, weight = index
                scores = self.indexer.score(
                    index_query[:, :, start:end], index_key[:, :, :end], weight[:, :, start:end]
                )
                if mode == "sparse":
                    allowed = select_top_k(scores.detach(), allowed, self.config.index_topk)
            bias = torch.zeros(allowed.shape, dtype=query.dtype).masked_fill_(~allowed, -1e9)
            logits = query[:, :, start:end] @ key[:, :, :end].transpose(-1, -2)
            weights = torch.softmax(logits.add_(bias.unsqueeze(1)), dim=-1)
            outputs.append(weights @ value[:, :, :end])
            if scores is not None:
                part = index_loss(scores, weights.detach().sum(1, dtype=torch.float32), allowed)
                loss = loss + part * ((end - start) / length)
        return torch.cat(outputs, 2), loss
