"""Decode steps as CUDA graphs: one launch for all kernels of a step.

A graph is captured for a number of rows, a form and a longest context. A step takes the smallest
that holds it. Rows that fill it up have slot -1 and see nothing: their latents and index keys are
written nowhere, their attention is 0, and no expert computes them.

In a graph all rows have one form. Where some rows lie within top-k and others do not, all take
lists: a row within top-k then lists its whole prefix, whatever its scores are.

What a graph reads lies in memory that does not move: the front of the step's integers, the page
table, the weights, the cache. Nothing in it waits for the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from engine.batch import Batch, KernelRows, RowGroup
from engine.cache import PagedCache
from engine.config import PAGE_TOKENS
from engine.model import Network
from scheduler.plan import Form, Row

CONTEXT_STEP = 8
"""From one context that graphs are captured for to the next."""
SHORTEST_CONTEXT = 8192
"""Scores up to here are taken in registers by one kernel."""
FEW_ROWS = (1, 2, 4)
ROW_STEP = 8
LOGIT_BYTES = 4
PAD = {"token": 0, "position": -1, "cache_slot": -1, "slot": 0}


@dataclass(frozen=True, order=True)
class Bucket:
    """What a graph is captured for."""

    rows: int
    context: int
    """Positions that a row may see at most."""
    form: Form


def row_counts(most: int) -> list[int]:
    """Returns the numbers of rows to capture for `most` sequences: few, then every eighth."""
    few = [count for count in FEW_ROWS if count < most]
    return [*few, *range(ROW_STEP, most, ROW_STEP), most]


def buckets(
    most_rows: int, longest: int, top_k: int, *, dense: bool, sparse: bool = False
) -> list[Bucket]:
    """Returns what to capture, the largest first: later graphs then fit into the memory of earlier.

    longest: the longest context in tokens; dense: no row ever selects; sparse: every row does.
    """
    contexts = []
    context = SHORTEST_CONTEXT
    while context < longest:
        contexts.append(context)
        context *= CONTEXT_STEP
    contexts.append(longest)
    kinds: list[tuple[Form, int]]
    if dense:
        kinds = [("dense_mqa", context) for context in contexts]
    else:
        within: list[tuple[Form, int]] = [("dense_mqa", min(top_k, longest))]
        kinds = [("mqa", context) for context in contexts] + ([] if sparse else within)
    found = [Bucket(rows, c, form) for rows in row_counts(most_rows) for form, c in kinds]
    return sorted(found, key=lambda bucket: (bucket.rows, bucket.context), reverse=True)


def smallest(known: Sequence[Bucket], rows: Sequence[Row]) -> Bucket | None:
    """Returns the smallest bucket that holds a step; None if none does, or it is no decode step."""
    forms = {row.form for row in rows}
    if not forms <= {"mqa", "dense_mqa"} or any(row.count > 1 for row in rows):
        return None
    form: Form = "dense_mqa" if forms == {"dense_mqa"} else "mqa"
    longest = max(row.start for row in rows) + 1
    fitting = [
        bucket
        for bucket in known
        if bucket.form == form and bucket.rows >= len(rows) and bucket.context >= longest
    ]
    return min(fitting, default=None)


def padded(bucket: Bucket, columns: Sequence[list[int]]) -> list[int]:
    """Returns a step's integers for `decode_batch`: of each row its token, position, cache slot and
    slot, columns one after another and filled up."""
    filled: list[int] = []
    for column, filler in zip(columns, PAD.values(), strict=True):
        filled += column
        filled += [filler] * (bucket.rows - len(column))
    return filled


def decode_batch(bucket: Bucket, integers: Tensor, page_table: Tensor) -> Batch:
    """Returns the batch that `padded` integers, at the front of `integers` [n] int64, describe.

    page_table [slots, pages] int32. Made of operators on the device alone.
    """
    token_ids, positions, cache_slots, slots = integers[: 4 * bucket.rows].view(4, bucket.rows)
    pages = -(-bucket.context // PAGE_TOKENS)
    tables = page_table[:, :pages].index_select(0, slots)
    visible = positions + 1
    every = torch.arange(bucket.rows, device=integers.device)
    rows = KernelRows(slice(0, bucket.rows), tables, visible.int(), bucket.context)
    group = RowGroup(bucket.form, every, tables, visible, (), (0, bucket.context), rows)
    return Batch(token_ids, positions, cache_slots, (group,), every, padded=True)


class DecodeGraphs:
    """The graphs of one model on one cache."""

    def __init__(
        self,
        model: Network,
        cache: PagedCache,
        integers: Tensor,
        page_table: Tensor,
        wanted: Sequence[Bucket],
    ) -> None:
        """integers, page_table: where every step's will lie."""
        self._model, self._cache = model, cache
        self._integers, self._page_table = integers, page_table
        self.wanted = list(wanted)
        most = max(bucket.rows for bucket in wanted)
        shape = most, model.config.vocab_size
        self._logits = torch.empty(shape, dtype=torch.float32, device=model.device)
        self._graphs: dict[Bucket, torch.cuda.CUDAGraph] = {}

    def capture(self, *, progress: bool = True) -> None:
        """Captures every bucket; kernels are compiled on the way, so that none is later."""
        pool = torch.cuda.graph_pool_handle()
        with torch.inference_mode():
            for bucket in tqdm(self.wanted, desc="graphs", unit="graph", disable=not progress):
                nothing = padded(bucket, ([], [], [], []))
                self._integers[: len(nothing)] = torch.tensor(nothing, device=self._model.device)
                self.launch(bucket)
                torch.cuda.synchronize()
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=pool):
                    self.launch(bucket)
                self._graphs[bucket] = graph

    def find(self, rows: Sequence[Row]) -> Bucket | None:
        """Returns the bucket of a step, None if it has no graph."""
        return smallest(list(self._graphs), rows)

    def replay(self, bucket: Bucket) -> Tensor:
        """Returns the logits [rows, vocab] of the integers that lie ready.

        They are overwritten by the next call. Does not wait for the device.
        """
        self._graphs[bucket].replay()
        return self._logits[: bucket.rows]

    def launch(self, bucket: Bucket) -> None:
        """Runs what the bucket's graph holds, kernel by kernel; `replay` says on what."""
        batch = decode_batch(bucket, self._integers, self._page_table)
        self._logits[: bucket.rows].copy_(self._model.forward(batch, self._cache))
