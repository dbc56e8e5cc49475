"""Preset `roofline`: counted work over published kernel rates; nothing is fitted to the figure.

`cost_model.published` lists every number used, with its source. They were measured on an H100 at
the shape of the 671B model; on another machine compute scales with the peak, reads with the memory
bandwidth, and at another shape both scale with the counted FLOPs and bytes. So away from the H100
and the 671B shape this is an estimate, and away from the published batch sizes a straight line
through them.

Prefill components are compute-bound: time per token = FLOPs / rate. Decode components have a part
that every step pays (reading weights, launching) and a part that every token pays:

    seconds per step and layer = per_step + per_token * batch

and neither is ever taken to be faster than reading the weights and caches that it needs.

On `cpu` (any machine whose data sheet was measured, in float32) nothing is taken off: work over
rate or, in decode, read over bandwidth, whichever is longer.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import numpy as np
from numpy.typing import ArrayLike

from cost_model.errors import CostError
from cost_model.machines import H100, MACHINES, Machine
from cost_model.model import Breakdown, Phase, cheapest, forms_of, require_phase
from cost_model.published import INPUTS
from cost_model.shape import V32, ModelShape
from cost_model.weights import expert_bytes, weight_bytes
from cost_model.work import (
    LINEAR,
    CacheDtype,
    FloatArray,
    Form,
    WeightDtype,
    as_positions,
    attention_flops,
    linear_flops,
    read_bytes,
)


class RooflineChoices(msgspec.Struct, frozen=True, kw_only=True):
    """What the inputs leave open. The defaults were chosen knowing the figure; see the docs."""

    batch: Annotated[int, msgspec.Meta(ge=1)] = 128
    """Decoded tokens per GPU and step."""
    tokens_per_read: Annotated[float, msgspec.Meta(ge=1)] = 1.85
    """Output tokens that share one read of the index keys: MTP drafts a second one."""
    sms_lost_to: Literal["linear and core", "everything", "nothing"] = "linear and core"
    """Prefill work that is slowed by the SMs that communication occupies."""
    decode_module: Literal["bf16 cache", "fp8 cache"] = "bf16 cache"
    """Which measurement of the decode module with indexer is taken."""
    weight_dtype: WeightDtype = "fp8"
    latent_dtype: CacheDtype = "fp8"
    index_dtype: CacheDtype = "fp8"
    """What is read; the published times are those of FP8 weights."""
    expert_parallel_gpus: Annotated[int, msgspec.Meta(ge=1)] = 128
    """GPUs that the routed experts of a layer are spread over."""


class Roofline(msgspec.Struct, frozen=True):
    """Any model of the family on any machine with a data sheet."""

    shape: ModelShape = V32
    machine: Machine = MACHINES["h800"]
    choices: RooflineChoices = RooflineChoices()

    @property
    def preset(self) -> str:
        return "roofline"

    @property
    def step_seconds(self) -> float:
        return 0.0

    @property
    def step_share_seconds(self) -> float:
        return 0.0

    def forms(self, phase: Phase) -> tuple[Form, ...]:
        return forms_of(self.shape, phase)

    def seconds(self, phase: Phase, positions: ArrayLike, form: Form | None = None) -> Breakdown:
        """GPU-seconds of one token by component, at `choices.batch` decoded tokens per step."""
        require_phase(phase)
        values = as_positions(positions)
        if self.machine.measured:
            linear = self._plain_linear(phase)
            core = self._plain_prefill_core if phase == "prefill" else self._plain_decode_core
        elif phase == "prefill":
            linear, core = self._prefill_linear(), self._prefill_core
        else:
            linear, core = self._decode_linear(), self._decode_core
        forms = self.forms(phase) if form is None else (form,)
        parts = {name: np.full_like(values, one) for name, one in linear.items()}
        return parts | cheapest([core(values, one) for one in forms])

    @property
    def _kept(self) -> float:
        """Share of the SMs that communication leaves to prefill."""
        lost = INPUTS["prefill.sms_for_communication"].value
        return 1.0 if self.choices.sms_lost_to == "nothing" else 1.0 - lost

    @property
    def _kept_by_indexer(self) -> float:
        """The same for what the default takes to run beside communication undisturbed."""
        return self._kept if self.choices.sms_lost_to == "everything" else 1.0

    def _rate(self, name: str, peak: Literal["bf16_flops", "fp8_flops"]) -> float:
        """A published FLOP/s, scaled from the H100's peak to this machine's."""
        return INPUTS[name].value * getattr(self.machine, peak) / getattr(H100, peak)

    def _layers(self, name: str) -> int:
        if name == "dense_mlp":
            return self.shape.first_k_dense_replace
        if name in ("routed_experts", "shared_experts"):
            return self.shape.moe_layers
        return 1 if name == "head" else self.shape.num_hidden_layers

    def _work_ratio(self, name: str) -> float:
        """FLOPs of one layer's component over those of the 671B model, where the inputs hold."""
        mine, theirs = _flops_per_layer(self.shape, name), _flops_per_layer(V32, name)
        return mine / theirs

    def _prefill_linear(self) -> dict[str, float]:
        speed = self.machine.fp8_flops / H100.fp8_flops
        parts = {}
        for name in _timed_components(self.shape):
            kept = self._kept_by_indexer if name == "indexer_projections" else self._kept
            one = INPUTS[f"prefill.{name}"].value * self._work_ratio(name) / speed
            parts[name] = self._layers(name) * one / kept
        return parts

    def _prefill_core(self, positions: FloatArray, form: Form) -> Breakdown:
        flops = attention_flops(self.shape, form, positions)
        expanded = form in ("mha", "masked_mha")
        rate = self._rate("prefill.core.mha" if expanded else "prefill.core.mqa", "bf16_flops")
        rate *= self._kept if expanded else self._kept_by_indexer
        parts = {"core_attention": flops["core_attention"] / rate}
        if form in ("masked_mha", "mqa") and self.shape.sparse:
            index_rate = self._rate("prefill.indexer", "fp8_flops") * self._kept_by_indexer
            parts["indexer"] = flops["indexer"] / index_rate
            memory = self.machine.memory_bandwidth / H100.memory_bandwidth
            each = INPUTS["prefill.top_k"].value * self.shape.num_hidden_layers / memory
            parts["top_k"] = each * positions
        return parts

    def _decode_linear(self) -> dict[str, float]:
        parts = {}
        for name in (*_timed_components(self.shape), "head"):
            if name == "indexer_projections":
                continue
            parts[name] = self._decode_component(name, f"decode.{name}")
        if self.shape.sparse:
            whole = self._decode_component("attention_projections", "decode.with_indexer")
            extra = whole - parts["attention_projections"]
            if self.choices.decode_module == "fp8 cache":
                more = (
                    INPUTS["decode.with_indexer_fp8.128"].value
                    - INPUTS["decode.with_indexer.128"].value
                )
                extra += self.shape.num_hidden_layers * more / 128
            parts["indexer_projections"] = extra
        return parts

    def _decode_component(self, name: str, key: str) -> float:
        """Seconds of one token: the line through the published batches, at this batch."""
        low, high = INPUTS[f"{key}.128"].value, INPUTS[f"{key}.256"].value
        per_token = (high - low) / 128
        per_step = low - 128 * per_token
        bandwidth = self.machine.memory_bandwidth / H100.memory_bandwidth
        peak = "bf16_flops" if name == "head" else "fp8_flops"
        speed = getattr(self.machine, peak) / getattr(H100, peak)
        read = _bytes_per_layer(self.shape, name) / _bytes_per_layer(V32, name)
        step = per_step * read / bandwidth / self.choices.batch
        published = step + per_token * self._work_ratio(name) / speed
        floor = self._read_by_step(name) / self.machine.memory_bandwidth / self.choices.batch
        return self._layers(name) * max(published, floor)

    def _read_by_step(self, name: str) -> float:
        """Bytes of one layer's weights that one GPU reads in a decode step.

        Of the routed experts on it those that the tokens of all GPUs are likely to hit, each token
        choosing at random.
        """
        shape, dtype = self.shape, self.choices.weight_dtype
        if name != "routed_experts":
            return _bytes_per_layer(shape, name, dtype)
        gpus = self.choices.expert_parallel_gpus
        unused = (1 - shape.num_experts_per_tok / shape.n_routed_experts) ** (
            self.choices.batch * gpus
        )
        return shape.n_routed_experts / gpus * (1 - unused) * expert_bytes(shape, dtype)

    def _decode_core(self, positions: FloatArray, form: Form) -> Breakdown:
        if form not in ("mqa", "dense_mqa"):
            raise CostError(f"form is {form!r}; decode allows: mqa, dense_mqa")
        flops = attention_flops(self.shape, form, positions)
        read = read_bytes(
            self.shape, form, positions, self.choices.latent_dtype, self.choices.index_dtype
        )
        work = flops["core_attention"] / self._rate(f"decode.core.{form}", "bf16_flops")
        parts = {
            "core_attention": np.maximum(
                work, read["core_attention"] / self.machine.memory_bandwidth
            )
        }
        if form == "mqa" and self.shape.sparse:
            bandwidth = INPUTS["decode.indexer.bandwidth"].value * self.machine.memory_bandwidth
            parts["indexer"] = np.maximum(
                read["indexer"] / bandwidth / self.choices.tokens_per_read,
                flops["indexer"] / self.machine.fp8_flops,
            )
        return parts

    def _plain_linear(self, phase: Phase) -> dict[str, float]:
        """Prefill computes; a decode step reads every weight that one of its tokens needs."""
        flops, stored = linear_flops(self.shape), weight_bytes(self.shape, "fp32")
        unused = 1 - self.shape.num_experts_per_tok / self.shape.n_routed_experts
        stored["routed_experts"] = int(stored["routed_experts"] * (1 - unused**self.choices.batch))
        parts = {}
        for name in LINEAR:
            if flops[name] == 0 or (name == "head" and phase == "prefill"):
                continue
            work = flops[name] / self.machine.bf16_flops
            read = stored[name] / self.machine.memory_bandwidth / self.choices.batch
            parts[name] = work if phase == "prefill" else max(work, read)
        return parts

    def _plain_prefill_core(self, positions: FloatArray, form: Form) -> Breakdown:
        """The tokens of a chunk share what they read, so computing is what counts."""
        flops = attention_flops(self.shape, form, positions)
        names = ["core_attention", *(["indexer"] if self.shape.sparse else [])]
        return {name: flops[name] / self.machine.bf16_flops for name in names}

    def _plain_decode_core(self, positions: FloatArray, form: Form) -> Breakdown:
        work = self._plain_prefill_core(positions, form)
        read = read_bytes(self.shape, form, positions, "fp32", "fp32")
        bandwidth = self.machine.memory_bandwidth
        return {name: np.maximum(work[name], read[name] / bandwidth) for name in work}


def _timed_components(shape: ModelShape) -> tuple[str, ...]:
    """Linear components with a published time; the router's is inside that of the experts."""
    names = ("attention_projections", "dense_mlp", "routed_experts", "shared_experts")
    return (*names, "indexer_projections") if shape.sparse else names


def _flops_per_layer(shape: ModelShape, name: str) -> float:
    layers = {
        "dense_mlp": max(shape.first_k_dense_replace, 1),
        "routed_experts": max(shape.moe_layers, 1),
        "shared_experts": max(shape.moe_layers, 1),
        "head": 1,
    }
    return linear_flops(shape)[name] / layers.get(name, shape.num_hidden_layers)


def _bytes_per_layer(shape: ModelShape, name: str, dtype: WeightDtype = "fp8") -> float:
    if name == "routed_experts":
        return expert_bytes(shape, dtype)
    layers = {
        "dense_mlp": max(shape.first_k_dense_replace, 1),
        "shared_experts": max(shape.moe_layers, 1),
        "head": 1,
    }
    return weight_bytes(shape, dtype)[name] / layers.get(name, shape.num_hidden_layers)


def all_to_all_seconds(shape: ModelShape, *, copies: float, bandwidth: float) -> float:
    """GPU-seconds that one token's dispatch (FP8) and combine (bfloat16) take on the network.

    `copies` of each token leave the GPU (8 experts, or at most 4 nodes with node-limited routing);
    `bandwidth` in bytes per second. No preset adds this: it is the floor beneath a schedule that
    hides communication, printed beside the curves.
    """
    if copies <= 0 or bandwidth <= 0:
        raise CostError(f"copies, bandwidth are {copies}, {bandwidth}; allowed: above 0")
    hidden = shape.hidden_size
    dispatch, combine = hidden + 4 * -(-hidden // 128), 2 * hidden
    return shape.moe_layers * copies * (dispatch + combine) / bandwidth
