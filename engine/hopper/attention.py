"""Multi-head latent attention with the lightning indexer, of the kernels for Hopper.

The steps are those of `engine.attention`, and so are the forms; what differs is what is fused and
what travels in FP8. Latents and index keys are written by one kernel each, from the product of the
layer's input on; the expanded forms multiply the cache's own FP8 rows, as they were stored.

Source: DeepSeek-V3.2 report, section 2 (DeepSeek Sparse Attention under MLA, eq. 1-2).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.attention import INDEX_NORM_EPS, Probe
from engine.batch import KernelRows, PrefillRows, RowGroup
from engine.cache import PagedCache
from engine.config import PAGE_TOKENS
from engine.hopper.weights import Fp8Weight, Product, Quantised, WideProduct, joined, take
from engine.model_config import ModelConfig
from kernels.cache import LATENT_GROUP
from kernels.hopper.dense_mha import dense_mha
from kernels.hopper.dense_mla import dense_mla
from kernels.hopper.fixed_order_linear import fixed_order_linear
from kernels.hopper.index_key_writer import write_index_keys
from kernels.hopper.index_query import quantised_index_queries
from kernels.hopper.indexer_logits import gather_index_keys, prefill_logits
from kernels.hopper.latent_writer import write_latents
from kernels.hopper.paged_indexer_logits import paged_logits, paged_schedule
from kernels.hopper.quantise import NormedQuantised, quantise, rms_norm_quantise
from kernels.hopper.query_rotation import rotate_queries
from kernels.hopper.selection_bitmask import selection_bitmask
from kernels.hopper.sparse_mla import sparse_mla
from kernels.hopper.topk import top_k_slots
from kernels.topk import positions_of

EXPANDED_KEYS = 1 << 14
"""Keys and values of a longer context are not expanded per head, which takes 64 KiB a token at the
671B sizes: with `--attention dense` such a prefill attends to the latents."""
SCORING = ("masked_mha", "mqa")
LIST_STEP = 64
"""Slot lists are as long as a multiple of this."""


@dataclass(frozen=True)
class StepGroup:
    """A group and what all layers share of it."""

    group: RowGroup
    rows: KernelRows
    rope: Tensor
    """[T', R / 2] complex64: the angles of its tokens."""
    schedule: Tensor | None
    """How the keys in their pages are dealt out to programs, a query's at a time; None: they are
    gathered first, and scored for several queries of a sequence at a time."""

    @classmethod
    def of(cls, group: RowGroup, rope: Tensor, *, batch_invariant: bool = False) -> StepGroup:
        """rope [T, R / 2]: the angles of the whole step; batch_invariant: prefill is scored by the
        kernel of decode."""
        rows, schedule = group.kernel_rows, None
        if group.form in SCORING and (rows.prefill is None or batch_invariant):
            schedule = paged_schedule(rows.visible[:, None])
        return cls(group, rows, rope[rows.tokens], schedule)

    @property
    def page_tables(self) -> Tensor:
        """[T', P] int32: the page table of each query's sequence."""
        tables, prefill = self.rows.page_tables, self.rows.prefill
        if prefill is None:
            return tables
        if tables.shape[0] == 1:
            return tables.expand(self.rows.visible.shape[0], -1)
        return tables.index_select(0, prefill.requests)


class Indexer:
    """Scores every visible token for each query and keeps the top-k."""

    def __init__(
        self, config: ModelConfig, weights: dict[str, Tensor], *, batch_invariant: bool
    ) -> None:
        self.heads, self.width = config.index_n_heads, config.index_head_dim
        self.top_k = config.index_topk
        self.wq_b = Product(take(weights, "indexer.wq_b"), batch_invariant=batch_invariant)
        self.k_norm = weights.pop("indexer.k_norm.weight")
        self.k_bias = weights.pop("indexer.k_norm.bias")
        scale = config.index_n_heads**-0.5 * config.index_head_dim**-0.5
        head_weights = weights.pop("indexer.weights_proj.weight") * scale
        self.head_weights = WideProduct(head_weights, batch_invariant=batch_invariant)

    def scores(
        self,
        step: StepGroup,
        query_latent: Quantised,
        head_weights: Tensor,
        pages: Tensor,
        *,
        fill: float | None = None,
    ) -> Tensor:
        """Returns the index scores [T', longest] of a group's queries.

        query_latent and head_weights [T', J] of its tokens; pages: the layer's FP8 index keys.
        Columns behind what a query sees are undefined, or `fill`.
        """
        rows = step.rows
        projected = self.wq_b(query_latent).unflatten(-1, (self.heads, self.width))
        queries, weights = quantised_index_queries(projected, head_weights, step.rope)
        if step.schedule is not None:
            return paged_logits(
                queries[:, None],
                pages,
                weights[:, None],
                rows.visible[:, None],
                step.page_tables,
                rows.longest,
                page_tokens=PAGE_TOKENS,
                schedule=step.schedule,
                fill=fill,
            )
        assert rows.prefill is not None
        keys, key_scales = gather_index_keys(
            pages,
            rows.page_tables,
            rows.prefill.key_starts,
            rows.prefill.context_slots.shape[0],
            width=self.width,
            page_tokens=PAGE_TOKENS,
        )
        starts, ends = rows.prefill.first_keys, rows.prefill.last_keys
        return prefill_logits(
            queries, keys, key_scales, weights, starts, ends, rows.longest, fill=fill
        )


class Attention:
    """One layer's attention: projections, cache writes, selection, and the form a row asks for."""

    def __init__(
        self,
        layer: int,
        config: ModelConfig,
        weights: dict[str, Tensor],
        *,
        select: bool,
        batch_invariant: bool,
    ) -> None:
        def product(weight: Fp8Weight) -> Product:
            return Product(weight, batch_invariant=batch_invariant)

        self.layer, self.select, self.batch_invariant = layer, select, batch_invariant
        self.scale, self.eps = config.softmax_scale, config.rms_norm_eps
        self.heads, self.latent = config.num_attention_heads, config.kv_lora_rank
        self.nope, self.value = config.qk_nope_head_dim, config.v_head_dim
        self.q_norm = weights.pop("q_a_layernorm.weight")
        self.kv_norm = weights.pop("kv_a_layernorm.weight")
        self.q_up, self.out = product(take(weights, "q_b_proj")), product(take(weights, "o_proj"))
        kv_up = take(weights, "kv_b_proj")
        self.kv_up = product(kv_up)
        per_head = kv_up.dequantised(torch.bfloat16).view(self.heads, -1, self.latent)
        self.absorb_k = per_head[:, : self.nope].contiguous()  # [H, N, C]
        self.absorb_v = per_head[:, self.nope :].transpose(1, 2).contiguous()  # [H, C, V]
        # All products of the layer's input are one; kv_a, whose rows fill no block, is the last.
        down = [take(weights, "q_a_proj"), take(weights, "kv_a_proj_with_mqa")]
        if select:
            down.insert(1, take(weights, "indexer.wk"))
        whole, outputs = joined(*down)
        self.down = product(whole)
        latents = slice(outputs[-1].start, outputs[-1].start + self.latent)
        self.parts = [outputs[0], latents, slice(latents.stop, outputs[-1].stop), *outputs[1:-1]]
        self.indexer = Indexer(config, weights, batch_invariant=batch_invariant)

    def __call__(
        self,
        x: NormedQuantised,
        slots: Tensor,
        rope: Tensor,
        groups: list[StepGroup],
        cache: PagedCache,
        probe: Probe | None,
    ) -> Tensor:
        """Returns the attention output [T, hidden]; writes the step's tokens into the cache first.

        x: the normalised input; slots [T] int64, -1 for tokens that are not written.
        """
        down = self.down(Quantised(x.values, x.scales))
        query_latent, latents, rope_keys, *index_keys = (down[:, part] for part in self.parts)
        write_latents(
            cache.latents.rows[self.layer],
            slots,
            latents,
            rope_keys,
            weight=self.kv_norm,
            eps=self.eps,
            table=rope,
        )
        head_weights = None
        if self.select:
            write_index_keys(
                cache.index_keys.pages[self.layer],
                slots,
                index_keys[0],
                weight=self.indexer.k_norm,
                bias=self.indexer.k_bias,
                eps=INDEX_NORM_EPS,
                table=rope,
                page_tokens=PAGE_TOKENS,
            )
            if any(step.group.form in SCORING for step in groups):
                assert x.normed is not None
                head_weights = self.indexer.head_weights(x.normed)
        normed = rms_norm_quantise(query_latent, self.q_norm, self.eps)
        query = Quantised(normed.values, normed.scales)
        q = self.q_up(query).unflatten(-1, (self.heads, -1))
        out = q.new_empty(q.shape[0], self.heads, self.value)
        for step in groups:
            self._attend(step, q, query, head_weights, cache, probe, out)
        return self.out(Quantised(*quantise(out.flatten(1))))

    def _attend(
        self,
        step: StepGroup,
        q: Tensor,
        query: Quantised,
        head_weights: Tensor | None,
        cache: PagedCache,
        probe: Probe | None,
        out: Tensor,
    ) -> None:
        """Fills the attention out [T, H, V] of one group's tokens, in its form."""
        group, rows = step.group, step.rows
        q, tokens = q[rows.tokens], rows.tokens
        if group.form not in SCORING:
            if group.form == "mha" and rows.prefill is not None and _expands(rows.prefill):
                out[tokens] = self._expanded(rows.prefill, q, step.rope, None, cache)
            else:
                self._absorbed(rows, q, step.rope, None, cache, out)
            return
        assert head_weights is not None
        scores = self.indexer.scores(
            step,
            query.rows(tokens),
            head_weights[tokens],
            cache.index_keys.pages[self.layer],
            fill=None if probe is None else -torch.inf,
        )
        # One token each has nothing to share expanded keys with.
        masked = group.form == "masked_mha" and rows.prefill is not None
        if probe is not None:
            positions = self._probed(step, scores, probe)
            slots = group.cache_slots(positions.long()).int()
        elif masked:
            positions = top_k_slots(scores, rows.visible, self.indexer.top_k)
        else:
            slots = top_k_slots(
                scores,
                rows.visible,
                self.indexer.top_k,
                block_tables=rows.page_tables,
                requests=None if rows.prefill is None else rows.prefill.requests,
                page_tokens=PAGE_TOKENS,
            )
        if masked and rows.prefill is not None:
            chosen = selection_bitmask(positions, rows.longest)
            out[tokens] = self._expanded(rows.prefill, q, step.rope, chosen, cache)
        else:
            self._absorbed(rows, q, step.rope, slots, cache, out)

    def _probed(self, step: StepGroup, scores: Tensor, probe: Probe) -> Tensor:
        """Returns the positions [T', K] int32 that a probe lets pass."""
        own = top_k_slots(scores, step.rows.visible, self.indexer.top_k)
        selected = torch.zeros(scores.shape[0], scores.shape[1] + 1, dtype=torch.bool)
        selected = selected.to(scores.device)
        # What is no position goes into a column of its own, which is dropped.
        selected.scatter_(1, torch.where(own >= 0, own, scores.shape[1]).long(), True)
        selected = selected[:, :-1].contiguous()
        for some, slot in _rows_of(step.group):
            selected[some] = probe.selection(self.layer, slot, scores[some], selected[some])
        return positions_of(selected, self.indexer.top_k).int()

    def _absorbed(
        self,
        rows: KernelRows,
        q: Tensor,
        rope: Tensor,
        slots: Tensor | None,
        cache: PagedCache,
        out: Tensor,
    ) -> None:
        """MQA form: W_UK folded into the query, W_UV applied after averaging latents.

        slots [T', K]: what each query attends to; None: all it sees.
        """
        absorbed = q.new_empty(q.shape[0], self.heads, self.latent + q.shape[2] - self.nope)
        self._per_head(q[..., : self.nope], self.absorb_k, absorbed[..., : self.latent])
        rotate_queries(q[..., self.nope :], rope, absorbed[..., self.latent :])
        latent_rows = cache.latents.rows[self.layer]
        if slots is None:
            tables = rows.page_tables
            if rows.prefill is not None and tables.shape[0] > 1:
                tables = tables.index_select(0, rows.prefill.requests)
            averages, _ = dense_mla(
                absorbed,
                latent_rows,
                tables,
                rows.visible,
                self.scale,
                latent=self.latent,
                page_tokens=PAGE_TOKENS,
            )
        else:
            entries = slots.shape[1]
            if not self.batch_invariant:  # then as long as the longest row's
                entries = min(entries, -(-rows.longest // LIST_STEP) * LIST_STEP)
            averages, _ = sparse_mla(
                absorbed,
                latent_rows,
                slots[:, :entries],
                self.scale,
                latent=self.latent,
                batch_invariant=self.batch_invariant,
            )
        values = out.new_empty(averages.shape[0], self.heads, self.value)
        self._per_head(averages, self.absorb_v, values)
        out[rows.tokens] = values

    def _per_head(self, x: Tensor, weights: Tensor, out: Tensor) -> None:
        """Fills out [T', H, N] with x [T', H, K] times weights [H, K, N]."""
        if self.batch_invariant:
            fixed_order_linear(x, weights.transpose(1, 2)[None], out.dtype, out=out)
        else:
            torch.bmm(x.transpose(0, 1), weights, out=out.transpose(0, 1))

    def _expanded(
        self,
        prefill: PrefillRows,
        q: Tensor,
        rope: Tensor,
        chosen: Tensor | None,
        cache: PagedCache,
    ) -> Tensor:
        """MHA form: per-head keys and values expanded from the contexts' latents; turns q in place.

        chosen: the selected positions as bits; None: all that a query sees.
        """
        rotate_queries(q[..., self.nope :], rope, q[..., self.nope :])
        latents, rope_keys = self._context(prefill.context_slots, cache)
        expanded = self.kv_up(latents).unflatten(-1, (self.heads, -1))
        found, _ = dense_mha(
            q,
            expanded[..., : self.nope],
            rope_keys,
            expanded[..., self.nope :],
            prefill.query_starts,
            prefill.key_starts,
            self.scale,
            max_query_tokens=prefill.most_queries,
            selected=chosen,
        )
        return found

    def _context(self, slots: Tensor, cache: PagedCache) -> tuple[Quantised, Tensor]:
        """Returns the latents and the rope keys [S, R] bfloat16 at slots [S].

        FP8 rows are activations by groups of 128 already: they are multiplied as they stand.
        """
        rows = cache.latents.rows[self.layer].index_select(0, slots)
        if not cache.latents.fp8:
            latents, rope_keys = rows[:, : self.latent], rows[:, self.latent :]
            return Quantised(*quantise(latents)), rope_keys.contiguous()
        scale_end = self.latent + 4 * (self.latent // LATENT_GROUP)
        values, scales, rope_keys = rows.tensor_split((self.latent, scale_end), dim=1)
        latents8 = Quantised(
            values.contiguous().view(torch.float8_e4m3fn), scales.contiguous().view(torch.float32)
        )
        return latents8, rope_keys.contiguous().view(torch.bfloat16)


def _expands(prefill: PrefillRows) -> bool:
    return prefill.context_slots.shape[0] <= EXPANDED_KEYS


def _rows_of(group: RowGroup) -> list[tuple[slice, int]]:
    """(its queries, slot) of each sequence of a group."""
    if group.shared_context:
        return [(slice(None), group.slots[0])]
    return [(slice(row, row + 1), slot) for row, slot in enumerate(group.slots)]
