"""How much a group of GPUs holds and makes: pages, sequences, tokens per second, dollars."""

from __future__ import annotations

import msgspec

from cost_model.costs import require_price, usd_per_million
from cost_model.errors import CostError
from cost_model.machines import Machine
from cost_model.model import total
from cost_model.roofline import Roofline, RooflineChoices
from cost_model.shape import ModelShape
from cost_model.weights import expert_bytes, mtp_bytes, weight_bytes
from cost_model.work import CacheDtype, WeightDtype, cache_bytes_per_token

PAGE_TOKENS = 64


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """Figures per GPU unless the name says otherwise; sequences are `context` tokens long."""

    gpus: int
    context_tokens: int
    weight_bytes: int
    reserved_bytes: int
    """Activations, buffers, graphs: the share of the memory that is not handed out."""
    cache_bytes: int
    bytes_per_token: int
    pages: int
    sequences: int
    """Sequences of this length that the pages hold: the batch of a decode step."""
    step_seconds: float
    """One decode step with all of them."""
    tokens_per_second: float
    """Decoded by one GPU."""
    tokens_per_second_all_gpus: float
    usd_per_million_tokens: float


def capacity(
    shape: ModelShape,
    machine: Machine,
    *,
    gpus: int,
    context: int,
    price: float,
    weight_dtype: WeightDtype = "fp8",
    latent_dtype: CacheDtype = "fp8",
    index_dtype: CacheDtype = "fp8",
    memory_share: float = 0.9,
) -> Capacity:
    """Decoding at `context` tokens per sequence, with attention replicated and experts spread.

    Time is that of the preset `roofline` at the batch that fits, one token per sequence and step:
    drafts take memory here, but nothing is drafted. Raises CostError when the weights do not fit,
    or not one sequence does.
    """
    if machine.measured and {weight_dtype, latent_dtype, index_dtype} != {"fp32"}:
        raise CostError(
            f"dtypes are {weight_dtype}, {latent_dtype}, {index_dtype}; {machine.name} was "
            "measured in float32 and allows: fp32"
        )
    require_price(price)
    if gpus < 1:
        raise CostError(f"gpus is {gpus}; allowed: 1 and above")
    if context < 1:
        raise CostError(f"context is {context}; allowed: 1 token and above")
    if not 0 < memory_share <= 1:
        raise CostError(f"memory share is {memory_share}; allowed: above 0, at most 1")
    weights = weights_per_gpu(shape, gpus, weight_dtype)
    usable = int(machine.memory_bytes * memory_share)
    if weights >= usable:
        raise CostError(
            f"gpus is {gpus}; the weights take {weights / 1e9:.1f} GB on each and {machine.name} "
            f"gives {usable / 1e9:.1f} GB; allowed: more GPUs"
        )
    per_token = cache_bytes_per_token(shape, latent_dtype, index_dtype, mtp=True)
    pages = (usable - weights) // (per_token * PAGE_TOKENS)
    sequences = pages // -(-context // PAGE_TOKENS)
    if sequences < 1:
        raise CostError(
            f"context is {context}; allowed: at most {pages * PAGE_TOKENS} tokens on {gpus} GPUs"
        )
    choices = RooflineChoices(
        batch=sequences,
        tokens_per_read=1,
        weight_dtype=weight_dtype,
        latent_dtype=latent_dtype,
        index_dtype=index_dtype,
        expert_parallel_gpus=gpus,
    )
    model = Roofline(shape, machine, choices)
    seconds = float(total(model.seconds("decode", context)))
    return Capacity(
        gpus=gpus,
        context_tokens=context,
        weight_bytes=weights,
        reserved_bytes=int(machine.memory_bytes) - usable,
        cache_bytes=pages * per_token * PAGE_TOKENS,
        bytes_per_token=per_token,
        pages=pages,
        sequences=sequences,
        step_seconds=seconds * sequences,
        tokens_per_second=1 / seconds,
        tokens_per_second_all_gpus=gpus / seconds,
        usd_per_million_tokens=float(usd_per_million(model, "decode", context, price)),
    )


def weights_per_gpu(shape: ModelShape, gpus: int, dtype: WeightDtype = "fp8") -> int:
    """Bytes of weights on each GPU, MTP layers included: experts spread, the rest on every GPU."""
    parts = weight_bytes(shape, dtype)
    everything = sum(parts.values()) + mtp_bytes(shape, dtype)
    layers = shape.moe_layers + shape.num_nextn_predict_layers
    experts = layers * shape.n_routed_experts * expert_bytes(shape, dtype)
    return everything - experts + -(-experts // gpus)
