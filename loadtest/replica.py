"""One replica over N GPUs of a kind: its pages, what its steps take, how it is scheduled.

As in `cost_model.capacity`: attention and its weights are on every GPU, the routed experts are
spread over all of them, and every GPU brings the pages that its memory leaves. The pages are one
pool, and a step's work is spread evenly: what a step takes beside its tokens (reading weights,
launching) every GPU takes in full, the tokens' own seconds are divided by N. That is the best a
replica of this kind can do; imbalance between GPUs and time on the network come on top.

All seconds are those of the preset `roofline`, one token per sequence and step (nothing drafted).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import msgspec

from cost_model.capacity import PAGE_TOKENS, capacity
from cost_model.coefficients import step_coefficients
from cost_model.costs import require_price
from cost_model.errors import CostError
from cost_model.machines import Machine
from cost_model.model import total
from cost_model.predictor import StepCoefficients
from cost_model.roofline import Roofline, RooflineChoices
from cost_model.shape import ModelShape
from scheduler.config import SchedulerConfig
from scheduler.forms import FormPolicy, break_even_tokens
from scheduler.plan import Row

WINDOW_TOKENS = 1 << 17
FEW_ROWS, MANY_ROWS = 8, 256
"""Decode rows of a GPU between which its step times are taken as a line, for the predictor."""
GIBIBYTE = 1 << 30


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How a replica is run."""

    inter_token_target_s: float = 0.05
    pages: int | None = None
    """None: all that the memory holds."""
    max_model_len: int = WINDOW_TOKENS
    rows_per_gpu: int = 128
    """Sequences that run at once, by GPU."""
    tokens_per_gpu: int = 1024
    """Tokens of one step, by GPU."""
    queue_s: float = 10.0
    """Prompt tokens that may wait: what the replica computes in so much time."""
    queued_requests: int = 4096
    workspace_bytes_per_gpu: int = GIBIBYTE
    retention: bool = True
    """False: plain LRU over the same pages, and nothing is told when a turn ends."""
    pre_warm: bool = True
    cost_doubling_tokens: int = 0
    """With retention: as in SchedulerConfig, 0 as the engine's default."""


class Replica(msgspec.Struct, frozen=True, kw_only=True):
    """N GPUs that serve one model together."""

    shape: ModelShape
    machine: Machine
    gpus: int
    usd_per_hour: float
    """Of one GPU."""
    settings: Settings
    config: SchedulerConfig
    coefficients: StepCoefficients
    """What the scheduler's predictor begins with."""
    full_load: StepCoefficients
    """GPU-seconds by token at the batch the preset takes for granted: what tokens are priced at."""
    decode_step_s: tuple[float, ...]
    """Seconds of a step's weights and launches by its decode rows on one GPU, from 0 (as for 1)."""
    max_queued_tokens: int

    @property
    def room(self) -> float:
        """Share of a step of the target's length that its tokens can have; the rest it takes
        whatever it does."""
        return max(1e-9, 1 - self.coefficients.step_s / self.settings.inter_token_target_s)


def replica(
    shape: ModelShape,
    machine: Machine,
    gpus: int,
    settings: Settings,
    *,
    price: float | None = None,
) -> Replica:
    """Returns a replica of `shape` over `gpus` of `machine`.

    Raises CostError when the weights do not fit or a setting is outside its range.
    """
    for name in settings.__struct_fields__:
        value = getattr(settings, name)
        low = 0 if name == "cost_doubling_tokens" else 1e-9
        if value is not None and not isinstance(value, bool) and not low <= value < float("inf"):
            raise CostError(f"{name} is {value}; allowed: above 0, finite")
    price = require_price(machine.usd_per_hour if price is None else price)
    held = capacity(
        shape,
        machine,
        gpus=gpus,
        context=PAGE_TOKENS,
        price=price,
        weight_dtype="fp32" if machine.measured else "fp8",
        latent_dtype="fp32" if machine.measured else "fp8",
        index_dtype="fp32" if machine.measured else "fp8",
    )
    pages = settings.pages or held.pages * gpus
    steps = tuple(
        _decode_seconds(shape, machine, gpus, max(1, rows)) * max(1, rows)
        for rows in range(settings.rows_per_gpu + 1)
    )
    full_load = step_coefficients(_roofline(shape, machine, gpus, MANY_ROWS // 2))
    coefficients = _replica_coefficients(shape, machine, gpus, full_load)
    per_token_s = coefficients.prefill_token_s + coefficients.prefill_selected_token_s * (
        shape.index_topk
    )
    return Replica(
        shape=shape,
        machine=machine,
        gpus=gpus,
        usd_per_hour=price,
        settings=settings,
        config=_config(shape, gpus, pages, settings),
        coefficients=coefficients,
        full_load=full_load,
        decode_step_s=steps,
        max_queued_tokens=max(1, int(settings.queue_s / per_token_s)),
    )


class StepTimes:
    """What steps take: the cost model's seconds, by the rows of a plan."""

    def __init__(self, replica: Replica) -> None:
        self.gpus, self.top_k = replica.gpus, replica.shape.index_topk
        self._decode_step_s = replica.decode_step_s
        one = replica.full_load
        self._decode_context_s = one.decode_context_token_s / replica.gpus
        self._decode_selected_s = one.decode_selected_token_s / replica.gpus
        self._prefill_s = one.prefill_token_s / replica.gpus
        self._prefill_context_s = one.prefill_context_token_s / replica.gpus
        self._prefill_selected_s = one.prefill_selected_token_s / replica.gpus

    def seconds(self, rows: Sequence[Row]) -> float:
        """Seconds of a step with these rows."""
        top_k = self.top_k
        decodes = contexts = selections = 0
        prefill_s = 0.0
        for row in rows:
            count, start = row.count, row.start
            if count == 1 and start:
                decodes += 1
                contexts += start
                selections += start if start < top_k else top_k
            else:
                prefill_s += self._chunk(start, count)
        busiest = -(-decodes // self.gpus)
        return (
            self._decode_step_s[min(busiest, len(self._decode_step_s) - 1)]
            + (contexts + decodes) * self._decode_context_s
            + selections * self._decode_selected_s
            + prefill_s
        )

    def _chunk(self, start: int, count: int) -> float:
        below = min(max(self.top_k - start, 0), count)
        pairs = count * start + count * (count + 1) // 2
        selected = below * start + below * (below + 1) // 2 + (count - below) * self.top_k
        return (
            count * self._prefill_s
            + pairs * self._prefill_context_s
            + selected * self._prefill_selected_s
        )


def _roofline(shape: ModelShape, machine: Machine, gpus: int, batch: int) -> Roofline:
    choices = RooflineChoices(batch=batch, tokens_per_read=1, expert_parallel_gpus=gpus)
    return Roofline(shape, machine, choices)


@lru_cache(maxsize=4096)
def _decode_seconds(shape: ModelShape, machine: Machine, gpus: int, batch: int) -> float:
    """GPU-seconds of one decoded token without context."""
    return float(total(_roofline(shape, machine, gpus, batch).seconds("decode", 0)))


def _replica_coefficients(
    shape: ModelShape, machine: Machine, gpus: int, one: StepCoefficients
) -> StepCoefficients:
    few_s, many_s = (
        _decode_seconds(shape, machine, gpus, rows) * rows for rows in (FEW_ROWS, MANY_ROWS)
    )
    row_s = (many_s - few_s) / (MANY_ROWS - FEW_ROWS)
    return StepCoefficients(
        decode_token_s=row_s / gpus,
        decode_context_token_s=one.decode_context_token_s / gpus,
        decode_selected_token_s=one.decode_selected_token_s / gpus,
        prefill_token_s=one.prefill_token_s / gpus,
        prefill_context_token_s=one.prefill_context_token_s / gpus,
        prefill_selected_token_s=one.prefill_selected_token_s / gpus,
        row_s=0.0,
        step_s=max(0.0, few_s - FEW_ROWS * row_s),
    )


def _config(shape: ModelShape, gpus: int, pages: int, settings: Settings) -> SchedulerConfig:
    top_k = shape.index_topk
    break_even = break_even_tokens(
        top_k=top_k,
        kv_lora_rank=shape.kv_lora_rank,
        qk_rope=shape.qk_rope_head_dim,
        qk_nope=shape.qk_nope_head_dim,
        v_head=shape.v_head_dim,
    )
    return SchedulerConfig(
        total_pages=pages,
        page_tokens=PAGE_TOKENS,
        max_model_len=min(settings.max_model_len, pages * PAGE_TOKENS),
        max_num_seqs=settings.rows_per_gpu * gpus,
        max_num_batched_tokens=settings.tokens_per_gpu * gpus,
        max_queued_requests=settings.queued_requests,
        indexer_workspace_bytes=settings.workspace_bytes_per_gpu * gpus,
        forms=FormPolicy("auto" if top_k else "dense", top_k, break_even),
        eos_token_ids=(),
        inter_token_target_s=settings.inter_token_target_s,
        cost_doubling_tokens=settings.cost_doubling_tokens if settings.retention else 0,
        max_pre_warms=64 if settings.retention and settings.pre_warm else 0,
    )
