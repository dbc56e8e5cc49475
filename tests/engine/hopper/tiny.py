"""A tiny random checkpoint of sizes the kernels take, in FP8; the kernels' model and the torch one.

The torch model multiplies what the kernels multiply: the same FP8 weights, and activations rounded
to FP8 where the kernels quantise them. What is left between the two are orders of addition and the
bfloat16 roundings in between, which a fused kernel and its separate operators do not share.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import cycle
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from engine.batch import Batch
from engine.cache import CacheLayout, PagedCache
from engine.config import PAGE_TOKENS
from engine.hopper.model import HopperDeepseekV32
from engine.model import DeepseekV32
from engine.model_config import ModelConfig
from engine.runner import Runner
from kernels.fp8 import round_trip
from kernels.fp8_linear import dequantise_weight
from kernels.hopper.quantise import quantise
from kernels.linear import Linear
from scheduler.plan import Form, NewSlot, Prepare, Row, StepPlan
from scheduler.request import Sampling
from tests.checkpoints import is_fp8_linear, quantise_blocks, random_weights, tiny_config
from tests.parity import Recorder
from tests.reference_model import Trace

FIELDS = tiny_config(
    num_nextn_predict_layers=0,
    num_hidden_layers=1,
    first_k_dense_replace=0,
    vocab_size=64,
    hidden_size=128,
    intermediate_size=128,
    moe_intermediate_size=128,
    q_lora_rank=128,
    kv_lora_rank=128,
    qk_rope_head_dim=16,
    qk_nope_head_dim=16,
    v_head_dim=16,
    num_attention_heads=16,
    num_key_value_heads=16,
    index_n_heads=8,
    index_head_dim=32,
    index_topk=4,
    n_routed_experts=8,
)
CPU = torch.device("cpu")

Step = Sequence[tuple[int, int, Form]]
"""One step's rows: (sequence, tokens, form)."""


class RoundedLinear(Linear):
    """A product whose input is rounded to FP8, where the weight is one that is stored in FP8."""

    def _product(self, x: Tensor) -> Tensor:
        return super()._product(round_trip(x) if self.dtype == torch.bfloat16 else x)


def prompt_of(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    tokens: list[int] = torch.randint(7, 64, (length,), generator=generator).tolist()
    return tokens


@functools.cache
def weights(layers: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights as stored, FP8 with scales, and the same values in bfloat16."""
    fields = FIELDS | {"num_hidden_layers": layers, "first_k_dense_replace": layers - 1}
    stored, wide = {}, {}
    for name, weight in random_weights(fields, seed=3).items():
        if is_fp8_linear(name):
            values, scales = quantise_blocks(weight)
            stored[name], stored[name + "_scale_inv"] = values, scales
            wide[name] = dequantise_weight(values, scales, torch.float32).bfloat16()
        else:
            stored[name] = weight.bfloat16() if "embed_tokens" in name else weight
            wide[name] = stored[name]
    return stored, wide


def config_of(layers: int) -> ModelConfig:
    fields = FIELDS | {"num_hidden_layers": layers, "first_k_dense_replace": layers - 1}
    return ModelConfig.from_json(fields)


def kernels_model(layers: int, **settings: Any) -> HopperDeepseekV32:
    return HopperDeepseekV32(config_of(layers), dict(weights(layers)[0]), **settings)


def torch_model(layers: int, **settings: Any) -> DeepseekV32:
    with (
        mock.patch("engine.attention.Linear", RoundedLinear),
        mock.patch("kernels.moe.Linear", RoundedLinear),
    ):
        return DeepseekV32(config_of(layers), dict(weights(layers)[1]), index_fp8=True, **settings)


def empty_cache(layers: int, pages: int) -> PagedCache:
    """FP8 pages full of NaN, as those of other sequences may be."""
    cache = PagedCache(
        config_of(layers),
        CacheLayout("fp8", "fp8"),
        pages,
        compute_dtype=torch.bfloat16,
        device=CPU,
    )
    cache.latents.rows.fill_(0xFF)
    cache.index_keys.pages.fill_(0xFF)
    return cache


def new_slots(prompts: list[list[int]]) -> tuple[NewSlot, ...]:
    """A slot for every prompt, its pages in descending order."""
    counts = [-(-len(prompt) // PAGE_TOKENS) for prompt in prompts]
    free = list(range(sum(counts)))
    return tuple(
        NewSlot(
            slot=slot,
            request_id=f"r{slot}",
            choice=0,
            token_ids=prompt,
            prompt_tokens=len(prompt),
            sampling=Sampling(max_tokens=1, temperature=0.0),
            pages=[free.pop() for _ in range(counts[slot])],
        )
        for slot, prompt in enumerate(prompts)
    )


@dataclass
class Run:
    """What a model did."""

    traces: list[Trace]
    attended: list[Tensor]
    """What the first layer's attention gave before its last product, of every step."""
    routed: list[tuple[Tensor, Tensor, Tensor]]
    """Logits, experts and weights of every routing, call by call."""


def run(
    model: HopperDeepseekV32 | DeepseekV32,
    prompts: list[list[int]],
    steps: Sequence[Step],
    *,
    forced: Run | None = None,
) -> Run:
    """forced: attend to what that run selected, and compute the experts that it chose."""
    layers = model.config.num_hidden_layers
    lengths = [len(prompt) for prompt in prompts]
    selected = None if forced is None else [one.selected for one in forced.traces]
    recorder = Recorder(lengths, layers, selected)
    cache = empty_cache(layers, sum(-(-length // PAGE_TOKENS) for length in lengths))
    runner = Runner(model, cache, probe=recorder)
    logits = [torch.empty(length, model.config.vocab_size) for length in lengths]
    done = [0] * len(prompts)
    chosen = None if forced is None else forced.routed
    with _attended(model) as attended, _routed(model, chosen) as routed:
        for number, step in enumerate(steps):
            rows = []
            for slot, count, form in step:
                rows.append(Row(slot=slot, start=done[slot], count=count, sample="none", form=form))
                done[slot] += count
            prepare = Prepare(new_slots=new_slots(prompts)) if number == 0 else Prepare()
            found = _every_logit(runner, StepPlan(step=number, rows=tuple(rows), prepare=prepare))
            for row, values in zip(rows, found.split([row.count for row in rows]), strict=True):
                logits[row.slot][row.start : row.start + row.count] = values
    assert done == lengths, "the steps do not cover the prompts"
    recorded = zip(logits, recorder.scores, recorder.selected, strict=True)
    return Run([Trace(*each) for each in recorded], attended, routed)


@contextmanager
def _attended(model: HopperDeepseekV32 | DeepseekV32) -> Iterator[list[Tensor]]:
    """Collects what the first layer's last product of attention is given, before FP8 rounding."""
    collected: list[Tensor] = []
    attention: Any = model.layers[0].attention
    out = attention.out

    def product(x: Tensor) -> Tensor:
        collected.append(x.clone())
        return out(x)

    def quantised(x: Tensor) -> Any:
        if next(layer) == 0:
            collected.append(x.clone())
        return quantise(x)

    layer = cycle(range(len(model.layers)))
    if isinstance(model, HopperDeepseekV32):
        with mock.patch("engine.hopper.attention.quantise", quantised):
            yield collected
    else:
        with mock.patch.object(attention, "out", product):
            yield collected


@contextmanager
def _routed(
    model: HopperDeepseekV32 | DeepseekV32, forced: list[tuple[Tensor, Tensor, Tensor]] | None
) -> Iterator[list[tuple[Tensor, Tensor, Tensor]]]:
    """Collects every routing; forced: goes on with the experts and weights of those instead."""
    collected: list[tuple[Tensor, Tensor, Tensor]] = []
    own = isinstance(model, HopperDeepseekV32)
    name = "engine.hopper.feed_forward" if own else "engine.feed_forward"
    route = import_module(name).route

    def recorded(logits: Tensor, *args: Any, **how: Any) -> tuple[Tensor, Tensor]:
        experts, weights = route(logits, *args, **how)
        collected.append((logits, experts.clone(), weights))
        if forced is None:
            return experts, weights
        _, experts, weights = forced[len(collected) - 1]
        return experts.int(), weights

    with mock.patch(f"{name}.route", recorded):
        yield collected


def _every_logit(runner: Runner, plan: StepPlan) -> Tensor:
    """Runs a step; returns the logits of all its tokens."""
    forward, collected = runner.model.forward, []

    def of_all(batch: Batch, *args: Any) -> Tensor:
        every = torch.arange(batch.token_ids.shape[0])
        collected.append(forward(replace(batch, sampled=every), *args))
        return collected[0][batch.sampled]

    with mock.patch.object(runner.model, "forward", of_all):
        runner.execute(plan)
    return collected[0]
