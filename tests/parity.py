"""Runs one model three ways (engine, transformers, float64 reference) and compares the traces.

Selection is chaotic: one swapped key moves logits by as much as their own size. So two
implementations are never compared end to end. One runs freely; the other is forced to attend to
what the first selected, while its own scores and its own choice are recorded at every layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from engine.batch import Batch
from engine.cache import CacheLayout, PagedCache
from engine.config import PAGE_TOKENS
from engine.model import DeepseekV32
from engine.model_config import ModelConfig
from engine.runner import Runner
from scheduler.plan import Form, NewSlot, Prepare, Row, StepPlan
from scheduler.request import Sampling
from tests.checkpoints import write_checkpoint
from tests.reference_model import Trace, top_k_mask

LOGIT_TOLERANCE = 1e-4
SCORE_MARGIN = 1e-5
"""A selection may differ where a score lies this close to the k-th."""

Step = Sequence[tuple[int, int, Form]]
"""One step's rows: (sequence, tokens, form)."""


@dataclass(frozen=True)
class Parity:
    """How far two traces lie apart."""

    logits: float
    """Largest difference of a logit."""
    scores: float
    """Largest difference of an index score."""
    wrong_selections: int
    """Tokens that only one of them selected, although their score was not near the k-th."""
    compared_rows: int
    """Queries whose selection was compared, over all layers."""

    @property
    def holds(self) -> bool:
        return self.logits <= LOGIT_TOLERANCE and self.wrong_selections == 0


def parity(expected: Trace, found: Trace) -> Parity:
    """Compares `found`, which was forced to `expected.selected`, with `expected`."""
    scores, wrong, rows = 0.0, 0, 0
    layers = zip(expected.scores, found.scores, expected.selected, found.selected, strict=True)
    for expected_scores, found_scores, expected_mask, found_mask in layers:
        scored = ~found_scores.isnan().any(dim=-1)
        rows += int(scored.sum())
        visible = expected_scores[scored] > -math.inf
        assert torch.equal(visible, found_scores[scored] > -math.inf), "causal ranges differ"
        difference = (expected_scores[scored] - found_scores[scored].double())[visible]
        if difference.numel():
            scores = max(scores, float(difference.abs().max()))
        kth = expected_scores.masked_fill(~expected_mask, math.inf).amin(dim=-1, keepdim=True)
        clear = (expected_scores - kth).abs() > SCORE_MARGIN
        wrong += int(((expected_mask ^ found_mask) & clear)[scored].sum())
    logits = float((expected.logits.double() - found.logits.double()).abs().max())
    return Parity(logits, scores, wrong, rows)


class Recorder:
    """The engine's probe: records scores and selections by sequence, and forces selections."""

    def __init__(
        self, lengths: list[int], layers: int, forced: Sequence[list[Tensor]] | None
    ) -> None:
        self.scores = [[torch.full((n, n), math.nan) for _ in range(layers)] for n in lengths]
        self.selected = [[torch.ones(n, n).tril().bool() for _ in range(layers)] for n in lengths]
        self.forced = forced

    def selection(self, layer: int, slot: int, scores: Tensor, selected: Tensor) -> Tensor:
        """Records, then returns the forced selection, or the engine's own."""
        positions = (scores > -math.inf).sum(dim=-1) - 1
        own_scores, own_mask = self.scores[slot][layer], self.selected[slot][layer]
        width = min(scores.shape[-1], own_scores.shape[-1])
        assert not selected[:, width:].any(), "selected beyond the sequence"
        own_scores[positions] = -math.inf
        own_scores[positions, :width] = scores[:, :width]
        own_mask[positions] = False
        own_mask[positions, :width] = selected[:, :width]
        if self.forced is None:
            return selected
        wanted = torch.zeros_like(selected)
        wanted[:, :width] = self.forced[slot][layer][positions, :width]
        return wanted


def run_engine(
    fields: dict[str, Any],
    weights: dict[str, Tensor],
    sequences: Sequence[list[int]],
    steps: Sequence[Step],
    *,
    forced: Sequence[list[Tensor]] | None = None,
    select: bool = True,
    fp8_caches: bool = False,
) -> list[Trace]:
    """One trace per sequence, from the engine's own runner in float32.

    Sequences take scattered pages of a shared pool; every step runs its rows as one plan.
    """
    config = ModelConfig.from_json(fields)
    model = DeepseekV32(config, dict(weights), index_fp8=fp8_caches, select=select)
    lengths = [len(tokens) for tokens in sequences]
    page_counts = [-(-length // PAGE_TOKENS) for length in lengths]
    layout = CacheLayout("fp8", "fp8") if fp8_caches else CacheLayout("float32", "float32")
    pool = sum(page_counts) + 3
    cache = PagedCache(
        config, layout, pool, compute_dtype=torch.float32, device=torch.device("cpu")
    )
    scattered = torch.randperm(pool, generator=torch.Generator().manual_seed(1)).tolist()
    new_slots = tuple(
        NewSlot(
            slot=slot,
            request_id=f"r{slot}",
            choice=0,
            token_ids=tokens,
            prompt_tokens=len(tokens),
            sampling=Sampling(max_tokens=1),
            pages=[scattered.pop() for _ in range(page_counts[slot])],
        )
        for slot, tokens in enumerate(sequences)
    )
    recorder = Recorder(lengths, config.num_hidden_layers, forced)
    runner = Runner(model, cache, probe=recorder)
    logits = [torch.empty(length, config.vocab_size) for length in lengths]
    done = [0] * len(sequences)
    with every_logit(model) as step_logits:
        for number, step in enumerate(steps):
            rows = []
            for slot, count, form in step:
                rows.append(Row(slot=slot, start=done[slot], count=count, sample="none", form=form))
                done[slot] += count
            prepare = Prepare(new_slots=new_slots) if number == 0 else Prepare()
            runner.execute(StepPlan(step=number, rows=tuple(rows), prepare=prepare))
            row_logits = step_logits.pop().split([row.count for row in rows])
            for row, values in zip(rows, row_logits, strict=True):
                logits[row.slot][row.start : row.start + row.count] = values
    assert done == lengths, "the steps do not cover the sequences"
    recorded = zip(logits, recorder.scores, recorder.selected, strict=True)
    return [Trace(*each) for each in recorded]


@contextmanager
def every_logit(model: DeepseekV32) -> Iterator[list[Tensor]]:
    """Collects the logits of every token of each forward pass, not only of the sampled ones."""
    collected: list[Tensor] = []
    forward = model.forward

    def forward_all(batch: Batch, *args: Any) -> Tensor:
        every = torch.arange(batch.token_ids.shape[0])
        collected.append(forward(replace(batch, sampled=every), *args))
        return collected[-1][batch.sampled]

    with mock.patch.object(model, "forward", forward_all):
        yield collected


def load_transformers(folder: Path, fields: dict[str, Any], weights: dict[str, Tensor]) -> Any:
    """transformers' DeepSeek-V3.2 with these weights, float32 and eager, read from a checkpoint."""
    from transformers import DeepseekV32ForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    write_checkpoint(folder, fields, weights, tokenizer=False)
    return DeepseekV32ForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    )


@torch.no_grad()
def run_transformers(
    model: Any,
    tokens: list[int],
    chunks: Sequence[int],
    *,
    forced: list[Tensor] | None = None,
    dense: bool = False,
) -> Trace:
    """The trace of transformers, `chunks` tokens at a time over its cache.

    Its indexer returns only positions; scores are taken from, and selections forced into, the one
    `topk` call inside it.
    """
    from transformers import DynamicCache

    config = model.config
    length, layers = len(tokens), config.num_hidden_layers
    causal = torch.ones(length, length).tril().bool()
    trace = Trace(
        torch.empty(length, config.vocab_size),
        [torch.full((length, length), -math.inf) for _ in range(layers)],
        [torch.zeros(length, length, dtype=torch.bool) for _ in range(layers)],
    )
    cache = DynamicCache(config=config)
    start = 0

    def select(layer: int, masked: Tensor) -> SimpleNamespace:
        """Stands in for topk: padding a selection with one of its own members changes nothing."""
        rows = slice(start, start + masked.shape[1])
        width = masked.shape[2]
        scores = masked[0].masked_fill(~causal[rows, :width], -math.inf)
        own = top_k_mask(scores, config.index_topk)
        trace.scores[layer][rows, :width] = scores
        trace.selected[layer][rows, :width] = own
        used = causal[rows, :width] if dense else own
        if forced is not None:
            used = forced[layer][rows, :width]
        members = used.int().sort(dim=-1, descending=True, stable=True).indices
        pad = torch.arange(width) >= used.sum(dim=-1, keepdim=True)
        return SimpleNamespace(indices=torch.where(pad, members[:, :1], members)[None])

    for count in chunks:
        with spied_topk(model, select):
            ids = torch.tensor([tokens[start : start + count]])
            output = model(ids, past_key_values=cache, use_cache=True)
        trace.logits[start : start + count] = output.logits[0]
        start += count
    return trace


@contextmanager
def spied_topk(model: Any, select: Any) -> Iterator[None]:
    """Replaces torch.Tensor.topk by `select(layer, scores)`, inside the indexers only."""
    patches: list[Any] = []
    for layer in model.model.layers:
        indexer = layer.self_attn.indexer

        def forward(
            *args: Any, _own: Any = indexer.forward, _layer: int = indexer.layer_idx, **kwargs: Any
        ) -> Any:
            def topk(scores: Tensor, *_: Any, **__: Any) -> SimpleNamespace:
                result: SimpleNamespace = select(_layer, scores)
                return result

            with mock.patch.object(torch.Tensor, "topk", topk):
                return _own(*args, **kwargs)

        patches.append(mock.patch.object(indexer, "forward", forward))
    try:
        for patch in patches:
            patch.start()
        yield
    finally:
        for patch in patches:
            patch.stop()
