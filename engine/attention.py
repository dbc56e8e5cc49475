"""Multi-head latent attention with the lightning indexer, over the paged cache.

Source: DeepSeek-V3.2 report, section 2 (DeepSeek Sparse Attention under MLA, eq. 1-2).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from engine.batch import Batch, RowGroup
from engine.cache import PagedCache
from engine.config import PAGE_TOKENS
from engine.model_config import ModelConfig
from kernels.attention import block_bytes, mha, mqa_over_latents
from kernels.fp8 import round_trip
from kernels.hadamard import hadamard
from kernels.indexer_logits import indexer_logits
from kernels.linear import Linear, grouped_product
from kernels.norm import layer_norm, rms_norm
from kernels.rope import rope_half_split, rope_interleaved
from kernels.topk import positions_of, select_top_k, top_k_positions

INDEX_NORM_EPS = 1e-6
"""The index keys' LayerNorm has its own epsilon, whatever rms_norm_eps says."""


class Probe(Protocol):
    """Sees, and may replace, what the indexer selects; for parity tests and captures."""

    def selection(self, layer: int, slot: int, scores: Tensor, selected: Tensor) -> Tensor:
        """Returns the mask to use instead of `selected`; both masks and scores are [T', L]."""
        ...


class Indexer:
    """Scores every visible token for each query and keeps the top-k.

    The Hadamard rotation of queries and keys spreads outliers before FP8 rounding. It is
    orthogonal, so scores do not change: without FP8 it is left out.
    """

    def __init__(
        self, config: ModelConfig, weights: dict[str, Tensor], *, fp8: bool, batch_invariant: bool
    ) -> None:
        self.heads, self.width = config.index_n_heads, config.index_head_dim
        self.rope, self.top_k, self.fp8 = config.qk_rope_head_dim, config.index_topk, fp8
        self.rotate = rope_interleaved if config.indexer_rope_interleave else rope_half_split
        self.wq_b = Linear(weights["wq_b.weight"], batch_invariant=batch_invariant)
        self.k_norm, self.k_bias = weights["k_norm.weight"], weights["k_norm.bias"]
        self.batch_invariant = batch_invariant

    def _rotate(self, x: Tensor, rope: Tensor) -> Tensor:
        """Rotary embedding on the first dims, in place; then the Hadamard rotation on all."""
        x[..., : self.rope] = self.rotate(x[..., : self.rope], rope)
        return hadamard(x) if self.fp8 else x

    def keys(self, projected: Tensor, rope: Tensor) -> Tensor:
        """Returns the index keys [T, D] to cache, from the input times wk."""
        keys = layer_norm(projected, self.k_norm, self.k_bias, INDEX_NORM_EPS)
        return self._rotate(keys, rope)

    def queries(self, query_latent: Tensor, rope: Tensor) -> Tensor:
        """Returns index queries [T, J, D] from the normalised query latent [T, q_lora_rank]."""
        queries = self.wq_b(query_latent).unflatten(-1, (self.heads, self.width))
        queries = self._rotate(queries, rope)
        return round_trip(queries, self.width) if self.fp8 else queries

    def scores(
        self,
        layer: int,
        pages: Tensor,
        visible: Tensor,
        queries: Tensor,
        weights: Tensor,
        cache: PagedCache,
    ) -> Tensor:
        """Returns the index scores [T', L] of a group's queries, L the tokens of its pages [B, P].

        visible [T'] int64; queries [T', J, D]; weights [T', J] float32. Keys of decode rows are
        read a few pages at a time: neither they nor the scores per head leave a CPU's cache.
        """
        rows = pages.shape[0]
        if queries.shape[0] > rows:
            keys = cache.index_keys.read_pages(layer, pages)[0]
            return indexer_logits(
                queries, keys, weights, visible, batch_invariant=self.batch_invariant
            )
        page_bytes = rows * PAGE_TOKENS * (self.width + self.heads) * 4
        step = max(1, 2 * block_bytes(queries.device) // page_bytes)
        parts = [
            indexer_logits(
                queries,
                cache.index_keys.read_pages(layer, pages[:, begin : begin + step]),
                weights,
                visible - begin * PAGE_TOKENS,
                batch_invariant=self.batch_invariant,
            )
            for begin in range(0, pages.shape[1], step)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


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
        batch_invariant: bool,
    ) -> None:
        def linear(*names: str) -> Linear:
            tensors = [weights[f"{name}.weight"] for name in names]
            whole = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
            return Linear(whole, batch_invariant=batch_invariant)

        self.layer, self.config, self.select = layer, config, select
        self.batch_invariant = batch_invariant
        self.scale, self.eps = config.softmax_scale, config.rms_norm_eps
        self.heads, self.latent = config.num_attention_heads, config.kv_lora_rank
        self.nope, self.rope = config.qk_nope_head_dim, config.qk_rope_head_dim
        self.q_norm = weights["q_a_layernorm.weight"]
        self.kv_norm = weights["kv_a_layernorm.weight"]
        self.q_up, self.out = linear("q_b_proj"), linear("o_proj")
        self.kv_up = linear("kv_b_proj")
        per_head = weights["kv_b_proj.weight"].view(self.heads, -1, self.latent)
        self.absorb_k = per_head[:, : self.nope]  # [H, N, C]
        self.absorb_v = per_head[:, self.nope :].transpose(1, 2)  # [H, C, V]

        prefix = "indexer."
        own = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        self.indexer = Indexer(config, own, fp8=index_fp8, batch_invariant=batch_invariant)
        head_weights = own["weights_proj.weight"] * (config.index_n_heads**-0.5)
        head_weights = head_weights * config.index_head_dim**-0.5
        # All products of the layer's input are one, but for the head weights, which are float32.
        names = ["q_a_proj", "kv_a_proj_with_mqa"]
        self.widths = [config.q_lora_rank, self.latent, self.rope]
        self.head_weights: Linear | None = None
        if select:
            names.append("indexer.wk")
            self.widths.append(config.index_head_dim)
            if own["wk.weight"].dtype == torch.float32:
                weights["indexer.head_weights.weight"] = head_weights
                names.append("indexer.head_weights")
                self.widths.append(config.index_n_heads)
            else:
                self.head_weights = Linear(head_weights, batch_invariant=batch_invariant)
        self.down = linear(*names)

    def __call__(
        self, h: Tensor, batch: Batch, rope: Tensor, cache: PagedCache, probe: Probe | None
    ) -> Tensor:
        """Returns the attention output [T, hidden]; writes the step's tokens into the cache first.

        h [T, hidden] is the normalised input. Every form reads latents back from the cache, so
        that one-shot prefill, chunked prefill and decode see the same (rounded) values.
        """
        query_latent, latents, rope_keys, *rest = self.down(h).split_with_sizes(self.widths, dim=-1)
        query_latent = rms_norm(query_latent, self.q_norm, self.eps)
        latents = rms_norm(latents, self.kv_norm, self.eps)
        q = self.q_up(query_latent).unflatten(-1, (self.heads, -1))
        q_nope, q_rope = q.split_with_sizes((self.nope, self.rope), dim=-1)
        # The key that all heads share is turned as one more of them.
        turned = rope_interleaved(torch.cat((q_rope, rope_keys[:, None]), dim=1), rope)
        q_rope, rope_keys = turned[:, :-1], turned[:, -1]
        cache.latents.write(self.layer, batch.slots, latents, rope_keys)
        weights = None
        if self.select:
            cache.index_keys.write(self.layer, batch.slots, self.indexer.keys(rest[0], rope))
            weights = self.head_weights(h.float()) if self.head_weights else rest[1]
        inputs = (q_nope, q_rope, query_latent, weights, rope)
        if len(batch.groups) == 1:  # all tokens, in their order
            return self.out(self._attend(batch.groups[0], inputs, cache, probe).flatten(1))
        out = h.new_empty(h.shape[0], self.heads, self.config.v_head_dim)
        for group in batch.groups:
            part = tuple(None if t is None else t[group.tokens] for t in inputs)
            out[group.tokens] = self._attend(group, part, cache, probe)
        return self.out(out.flatten(1))

    def _attend(
        self,
        group: RowGroup,
        inputs: tuple[Tensor | None, ...],
        cache: PagedCache,
        probe: Probe | None,
    ) -> Tensor:
        """Returns the attention [T', H, V] of one group in its form."""
        q_nope, q_rope, query_latent, weights, rope = inputs
        assert q_nope is not None and q_rope is not None
        if group.form == "mha":
            return self._expanded(group, q_nope, q_rope, None, cache)
        if group.form == "dense_mqa":
            # Shapes of whole pages: bfloat16 products are compiled for every new shape.
            exact = q_nope.dtype == torch.float32
            width = group.longest if exact else group.pages.shape[1] * PAGE_TOKENS
            return self._absorbed(q_nope, q_rope, *group.leading_slots(width), cache)

        top_k = self.indexer.top_k
        width = top_k if self.batch_invariant else min(top_k, group.longest)
        assert query_latent is not None and weights is not None and rope is not None
        scores = self.indexer.scores(
            self.layer,
            group.pages,
            group.visible,
            self.indexer.queries(query_latent, rope),
            weights,
            cache,
        )
        selected = None
        if probe is not None or group.form == "masked_mha":
            selected = select_top_k(scores, top_k)
        if probe is not None and selected is not None:
            for slot, row in _rows_of(group):
                selected[row] = probe.selection(self.layer, slot, scores[row], selected[row])
        if group.form == "masked_mha":
            return self._expanded(group, q_nope, q_rope, selected, cache)
        if selected is not None:
            positions, complete = positions_of(selected, width), False
        else:
            positions, complete = top_k_positions(scores, width)
        slots = group.cache_slots(positions, complete=complete)
        return self._absorbed(q_nope, q_rope, slots, complete, cache)

    def _absorbed(
        self, q_nope: Tensor, q_rope: Tensor, slots: Tensor, complete: bool, cache: PagedCache
    ) -> Tensor:
        """MQA form: W_UK folded into the query, W_UV applied after averaging latents.

        slots [T', K]: the cache slots each query attends to; complete: none of them is -1.
        """

        def per_head(x: Tensor, weights: Tensor) -> Tensor:
            product = grouped_product(
                x.transpose(0, 1), weights, batch_invariant=self.batch_invariant
            )
            return product.transpose(0, 1)

        q = torch.cat((per_head(q_nope, self.absorb_k), q_rope), dim=-1)  # [T', H, C + R]
        row_bytes = slots.shape[1] * (q.shape[-1] + self.heads) * 4
        step = max(1, block_bytes(q.device) // row_bytes)
        averages = []
        for part, chosen in zip(q.split(step), slots.split(step), strict=True):
            rows = cache.latents.read(self.layer, chosen, complete=complete)
            valid = None if complete else chosen >= 0
            averages.append(
                mqa_over_latents(
                    part,
                    rows,
                    valid,
                    self.scale,
                    self.latent,
                    batch_invariant=self.batch_invariant,
                )
            )
        whole = averages[0] if len(averages) == 1 else torch.cat(averages)
        return per_head(whole, self.absorb_v)

    def _expanded(
        self,
        group: RowGroup,
        q_nope: Tensor,
        q_rope: Tensor,
        selected: Tensor | None,
        cache: PagedCache,
    ) -> Tensor:
        """MHA form: per-head keys and values expanded from the context's latents, one sequence."""
        context = group.longest
        rows = cache.latents.read(self.layer, group.context_slots(context), complete=True)
        latents, rope_keys = rows.split((self.latent, self.rope), dim=-1)
        expanded = self.kv_up(latents.contiguous()).unflatten(-1, (self.heads, -1))
        keys, values = expanded.split((self.nope, self.config.v_head_dim), dim=-1)
        keys = torch.cat((keys, rope_keys[:, None].expand(-1, self.heads, -1)), dim=-1)
        if selected is not None:
            selected = selected[:, :context]
        q = torch.cat((q_nope, q_rope), dim=-1)
        return mha(q, keys, values, group.visible, self.scale, selected)


def _rows_of(group: RowGroup) -> Iterator[tuple[int, slice]]:
    """(slot, its queries) of each sequence of a group."""
    if group.shared_context:
        yield group.slots[0], slice(None)
    else:
        for row, slot in enumerate(group.slots):
            yield slot, slice(row, row + 1)
