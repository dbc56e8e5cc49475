"""Multi-head latent attention with the lightning indexer, over the paged cache.

Source: DeepSeek-V3.2 report, section 2 (DeepSeek Sparse Attention under MLA, eq. 1-2).
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.batch import Batch, RowGroup
from engine.cache import PagedCache
from engine.model_config import ModelConfig
from kernels.attention import WORKSPACE_BYTES, mha, mqa_over_latents
from kernels.fp8 import round_trip
from kernels.hadamard import hadamard
from kernels.indexer_logits import indexer_logits
from kernels.norm import layer_norm, rms_norm
from kernels.rope import rope_half_split, rope_interleaved
from kernels.topk import positions_of, select_top_k

INDEX_NORM_EPS = 1e-6
"""The index keys' LayerNorm has its own epsilon, whatever rms_norm_eps says."""


class Probe(Protocol):
    """Sees, and may replace, what the indexer selects; for parity tests and captures."""

    def selection(self, layer: int, slot: int, scores: Tensor, selected: Tensor) -> Tensor:
        """Returns the mask to use instead of `selected`; both masks and scores are [T', L]."""
        ...


class Indexer:
    """Scores every visible token for each query and keeps the top-k."""

    def __init__(self, config: ModelConfig, weights: dict[str, Tensor], *, fp8: bool) -> None:
        self.heads, self.width = config.index_n_heads, config.index_head_dim
        self.rope, self.top_k, self.fp8 = config.qk_rope_head_dim, config.index_topk, fp8
        self.rotate = rope_interleaved if config.indexer_rope_interleave else rope_half_split
        self.wq_b = weights["wq_b.weight"]
        self.wk = weights["wk.weight"]
        self.k_norm, self.k_bias = weights["k_norm.weight"], weights["k_norm.bias"]
        self.head_weights = weights["weights_proj.weight"]

    def _rotate(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """Rotary embedding on the first dims, then the Hadamard rotation on all of them."""
        head, rest = x[..., : self.rope], x[..., self.rope :]
        return hadamard(torch.cat((self.rotate(head, *rope), rest), dim=-1))

    def keys(self, h: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """Returns the index keys [T, D] to cache; h [T, hidden] is the attention's input."""
        keys = layer_norm(F.linear(h, self.wk), self.k_norm, self.k_bias, INDEX_NORM_EPS)
        return self._rotate(keys, rope)

    def queries(self, query_latent: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """Returns index queries [T, J, D] from the normalised query latent [T, q_lora_rank]."""
        queries = F.linear(query_latent, self.wq_b).unflatten(-1, (self.heads, self.width))
        queries = self._rotate(queries, rope)
        return round_trip(queries, self.width) if self.fp8 else queries

    def weights(self, h: Tensor) -> Tensor:
        """Returns the head weights [T, J] float32 with both constants folded in."""
        return F.linear(h.float(), self.head_weights) * (self.heads * self.width) ** -0.5


class Attention:
    """One layer's attention: projections, cache writes, selection, and the form a row asks for."""

    def __init__(
        self,
        layer: int,
        config: ModelConfig,
        weights: dict[str, Tensor],
        *,
        index_fp8: bool,
        select: bool,
    ) -> None:
        self.layer, self.config, self.select = layer, config, select
        self.scale, self.eps = config.softmax_scale, config.rms_norm_eps
        self.heads, self.latent = config.num_attention_heads, config.kv_lora_rank
        self.nope, self.rope = config.qk_nope_head_dim, config.qk_rope_head_dim
        self.down = torch.cat((weights["q_a_proj.weight"], weights["kv_a_proj_with_mqa.weight"]))
        self.q_norm = weights["q_a_layernorm.weight"]
        self.kv_norm = weights["kv_a_layernorm.weight"]
        self.q_up = weights["q_b_proj.weight"]
        self.kv_up = weights["kv_b_proj.weight"]
        per_head = self.kv_up.view(self.heads, self.nope + config.v_head_dim, self.latent)
        self.absorb_k = per_head[:, : self.nope]  # [H, N, C]
        self.absorb_v = per_head[:, self.nope :].transpose(1, 2)  # [H, C, V]
        self.out = weights["o_proj.weight"]
        prefix = "indexer."
        own = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        self.indexer = Indexer(config, own, fp8=index_fp8)

    def __call__(
        self,
        h: Tensor,
        batch: Batch,
        rope: tuple[Tensor, Tensor],
        cache: PagedCache,
        probe: Probe | None,
    ) -> Tensor:
        """Returns the attention output [T, hidden]; writes the step's tokens into the cache first.

        h [T, hidden] is the normalised input. Every form reads latents back from the cache, so
        that one-shot prefill, chunked prefill and decode see the same (rounded) values.
        """
        config = self.config
        query_latent, latents, rope_keys = F.linear(h, self.down).split(
            (config.q_lora_rank, self.latent, self.rope), dim=-1
        )
        query_latent = rms_norm(query_latent, self.q_norm, self.eps)
        latents = rms_norm(latents, self.kv_norm, self.eps)
        cache.latents.write(self.layer, batch.slots, latents, rope_interleaved(rope_keys, *rope))
        if self.select:
            cache.index_keys.write(self.layer, batch.slots, self.indexer.keys(h, rope))

        q = F.linear(query_latent, self.q_up).unflatten(-1, (self.heads, -1))
        q_nope, q_rope = q.split((self.nope, self.rope), dim=-1)
        q_rope = rope_interleaved(q_rope, *rope)

        out = h.new_empty(h.shape[0], self.heads, config.v_head_dim)
        for group in batch.groups:
            part = group.tokens
            selected = None
            if group.form in ("mqa", "masked_mha"):
                part_rope = (rope[0][part], rope[1][part])
                selected = self._select(
                    group,
                    self.indexer.queries(query_latent[part], part_rope),
                    self.indexer.weights(h[part]),
                    cache,
                    probe,
                )
            attend = self._expanded if group.form in ("mha", "masked_mha") else self._absorbed
            out[part] = attend(group, q_nope[part], q_rope[part], selected, cache)
        return F.linear(out.flatten(1), self.out)

    def _select(
        self,
        group: RowGroup,
        queries: Tensor,
        weights: Tensor,
        cache: PagedCache,
        probe: Probe | None,
    ) -> Tensor:
        """Returns the mask [T', L] of the tokens each query attends to."""
        keys = cache.index_keys.read_pages(self.layer, group.pages)
        if group.shared_context:
            keys = keys[0]
        scores = indexer_logits(queries, keys, weights, group.visible)
        selected = select_top_k(scores, self.indexer.top_k)
        if probe is not None:
            rows = (
                [slice(None)]
                if group.shared_context
                else [slice(b, b + 1) for b in range(len(group.slots))]
            )
            for slot, row in zip(group.slots, rows, strict=True):
                selected[row] = probe.selection(self.layer, slot, scores[row], selected[row])
        return selected

    def _absorbed(
        self,
        group: RowGroup,
        q_nope: Tensor,
        q_rope: Tensor,
        selected: Tensor | None,
        cache: PagedCache,
    ) -> Tensor:
        """MQA form: W_UK folded into the query, W_UV applied after averaging latents."""
        absorbed = (q_nope.transpose(0, 1) @ self.absorb_k).transpose(0, 1)  # [T', H, C]
        q = torch.cat((absorbed, q_rope), dim=-1)
        if selected is None:
            every = torch.arange(group.context_tokens, device=q.device).expand(q.shape[0], -1)
            positions = torch.where(every < group.visible[:, None], every, -1)
        else:
            k = min(self.indexer.top_k, selected.shape[1])
            positions = positions_of(selected, k)
        slots = group.cache_slots(positions)
        averages = torch.empty_like(absorbed)
        row_bytes = positions.shape[1] * (q.shape[-1] + self.heads) * 4
        step = max(1, WORKSPACE_BYTES // row_bytes)
        for begin in range(0, q.shape[0], step):
            part = slice(begin, begin + step)
            rows = cache.latents.read(self.layer, slots[part])
            averages[part] = mqa_over_latents(
                q[part], rows, slots[part] >= 0, self.scale, self.latent
            )
        return (averages.transpose(0, 1) @ self.absorb_v).transpose(0, 1)

    def _expanded(
        self,
        group: RowGroup,
        q_nope: Tensor,
        q_rope: Tensor,
        selected: Tensor | None,
        cache: PagedCache,
    ) -> Tensor:
        """MHA form: per-head keys and values expanded from the context's latents, one sequence."""
        context = int(group.visible.max())
        positions = torch.arange(context, device=q_nope.device)[None]
        rows = cache.latents.read(self.layer, group.cache_slots(positions)[0])
        latents, rope_keys = rows.split((self.latent, self.rope), dim=-1)
        expanded = F.linear(latents, self.kv_up).unflatten(-1, (self.heads, -1))
        keys, values = expanded.split((self.nope, self.config.v_head_dim), dim=-1)
        keys = torch.cat((keys, rope_keys[:, None].expand(-1, self.heads, -1)), dim=-1)
        if selected is not None:
            selected = selected[:, :context]
        q = torch.cat((q_nope, q_rope), dim=-1)
        return mha(q, keys, values, group.visible, self.scale, selected)
