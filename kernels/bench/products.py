"""Cases of the products: FP8 linears of a layer, routed experts, and what quantises for them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.bench.case import (
    ACTIVE_EXPERTS,
    DENSE_LAYERS,
    DENSE_WIDTH,
    EXPERT_GROUPS,
    EXPERT_WIDTH,
    EXPERTS,
    HEADS,
    HIDDEN,
    INDEX_HEADS,
    INDEX_WIDTH,
    KEPT_GROUPS,
    LATENT,
    LAYERS,
    NOPE,
    QUERY_RANK,
    ROPE,
    VALUE,
    VOCABULARY,
    Case,
    Phase,
    Place,
    Prepared,
    Products,
    Work,
    difference,
    normal,
    powers_of_two,
    random_fp8,
    some_rows,
)
from kernels.fp8 import dequantise_groups
from kernels.fp8_linear import dequantise_weight
from kernels.hopper.fixed_order_fp8_linear import fixed_order_fp8_linear
from kernels.hopper.fp8_linear import fp8_linear
from kernels.hopper.grouped_linear import grouped_linear
from kernels.hopper.quantise import quantise, rms_norm_quantise, swiglu_quantise
from kernels.hopper.routed_experts import routed_experts
from kernels.hopper.routing import route, sort_by_expert

TOLERANCE = 1e-5
"""Of one product with a bfloat16 result."""
CHAIN_TOLERANCE = 1e-3
"""Of experts: the product in between is rounded to FP8, and not from the same float32 sums."""
MANY, FEW = 4096, 64
MOE_LAYERS = LAYERS - DENSE_LAYERS

LINEARS: tuple[tuple[str, int, int, int], ...] = (
    ("attention_projections", QUERY_RANK + LATENT + ROPE, HIDDEN, LAYERS),
    ("attention_projections", HEADS * (NOPE + ROPE), QUERY_RANK, LAYERS),
    ("attention_projections", HIDDEN, HEADS * VALUE, LAYERS),
    ("indexer_projections", INDEX_HEADS * INDEX_WIDTH, QUERY_RANK, LAYERS),
    ("indexer_projections", INDEX_WIDTH, HIDDEN, LAYERS),
    ("dense_mlp", 2 * DENSE_WIDTH, HIDDEN, DENSE_LAYERS),
    ("dense_mlp", HIDDEN, DENSE_WIDTH, DENSE_LAYERS),
    ("shared_experts", 2 * EXPERT_WIDTH, HIDDEN, MOE_LAYERS),
    ("shared_experts", HIDDEN, EXPERT_WIDTH, MOE_LAYERS),
)
"""Component, outputs, inputs and layers of the FP8 linears outside the routed experts."""
FURTHER: tuple[tuple[int, int], ...] = ((32_768, 512), (576, 7168))
"""Outputs and inputs of shapes that are often published and that no engine layer has alone."""


def cases() -> Iterator[Case]:
    """Yields the cases of this file's ops."""
    phases: tuple[tuple[int, Phase], ...] = ((MANY, "prefill"), (FEW, "decode"))
    for tokens, phase in phases:
        for component, outputs, inputs, layers in LINEARS:
            place = Place(phase, component, 0, tokens, layers)
            yield linear_case(tokens, outputs, inputs, place, quick=component == "shared_experts")
        yield from float_cases(tokens, phase)
        yield experts_case(tokens, Place(phase, "routed_experts", 0, tokens, MOE_LAYERS))
        yield route_case(tokens, Place(phase, "router", 0, tokens, MOE_LAYERS))
    for outputs, inputs in FURTHER:
        yield linear_case(MANY, outputs, inputs, None)
    for tokens in (1, 16):
        yield linear_case(tokens, HIDDEN, HEADS * VALUE, None)
    yield grouped_case(4, 8192, 2 * EXPERT_WIDTH, HIDDEN, quick=True)
    yield grouped_case(4, 8192, HIDDEN, EXPERT_WIDTH)
    yield from quantise_cases()


def linear_work(tokens: int, outputs: int, inputs: int) -> Work:
    """Of one FP8 product with a bfloat16 result."""
    scales = 4 * (tokens * inputs // 128 + -(-outputs // 128) * (inputs // 128))
    moved = tokens * inputs + outputs * inputs + 2 * tokens * outputs
    return Work(2 * tokens * outputs * inputs, moved + scales, "fp8")


def experts_work(tokens: int, touched: int) -> Work:
    """Of the routed experts of one layer, `touched` of which have tokens."""
    pairs = tokens * ACTIVE_EXPERTS
    weights = 3 * HIDDEN * EXPERT_WIDTH
    moved = touched * weights + tokens * HIDDEN * (1 + 2) + pairs * (2 * HIDDEN + 5 * EXPERT_WIDTH)
    return Work(2 * pairs * weights, moved, "fp8")


def activations(tokens: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns normal activations, quantised."""
    return quantise(normal(tokens, width, device=device))


def linear_case(
    tokens: int,
    outputs: int,
    inputs: int,
    place: Place | None,
    *,
    quick: bool = False,
    fixed_order: bool = False,
) -> Case:
    """One FP8 product."""
    product = fixed_order_fp8_linear if fixed_order else fp8_linear

    def prepare(device: torch.device) -> Prepared:
        x, x_scales = activations(tokens, inputs, device)
        weight = random_fp8(outputs, inputs, device=device)
        scales = powers_of_two(-(-outputs // 128), inputs // 128, device=device)
        some = some_rows(tokens, device)

        def run() -> Tensor:
            return product(x, x_scales, weight, scales)

        def error() -> float:
            chosen = x.view(torch.uint8)[some].view(x.dtype)
            wide = dequantise_groups(chosen, x_scales[some], torch.float32)
            plain = wide @ dequantise_weight(weight, scales, torch.float32).T
            return difference(run()[some], plain)

        return Prepared(run, error)

    work = linear_work(tokens, outputs, inputs)
    shape = f"M {tokens}, N {outputs:,}, K {inputs:,}"
    op = product.__name__
    return Case(op, shape, work, prepare, TOLERANCE, place, quick)


def float_cases(tokens: int, phase: Phase) -> Iterator[Case]:
    """Yields what stays in PyTorch: absorbing, the head, the indexer's head weights, the router."""
    absorb = Place(phase, "attention_projections", 0, tokens, LAYERS)
    yield product_case("absorb W_UK", HEADS, tokens, NOPE, LATENT, absorb)
    yield product_case("absorb W_UV", HEADS, tokens, LATENT, VALUE, absorb)
    if phase == "decode":  # of a prompt, one token is sampled from
        place = Place(phase, "head", 0, tokens, 1)
        yield product_case("head", 1, tokens, HIDDEN, VOCABULARY, place)
    for name, component, outputs, layers in (
        ("index head weights", "indexer_projections", INDEX_HEADS, LAYERS),
        ("router", "router", EXPERTS, MOE_LAYERS),
    ):
        place = Place(phase, component, 0, tokens, layers)
        yield product_case(name, 1, tokens, HIDDEN, outputs, place, torch.float32)


def product_case(
    name: str,
    groups: int,
    tokens: int,
    inputs: int,
    outputs: int,
    place: Place,
    dtype: torch.dtype = torch.bfloat16,
) -> Case:
    """PyTorch's product, batched over groups: what our kernels are added to."""

    def prepare(device: torch.device) -> Prepared:
        x = normal(groups, tokens, inputs, device=device, dtype=dtype)
        weight = normal(groups, inputs, outputs, device=device, dtype=dtype)
        some = some_rows(tokens, device)

        def run() -> Tensor:
            return torch.bmm(x, weight)

        def error() -> float:
            return difference(run()[-1, some], x[-1, some].double() @ weight[-1].double())

        return Prepared(run, error)

    size = dtype.itemsize
    moved = size * groups * (tokens * inputs + inputs * outputs + tokens * outputs)
    products: Products = "bf16" if dtype == torch.bfloat16 else "none"
    work = Work(2 * groups * tokens * inputs * outputs, moved, products)
    kind = str(dtype).removeprefix("torch.")
    return Case("torch", f"{name}, {tokens} tokens, {kind}", work, prepare, TOLERANCE, place)


def experts_case(tokens: int, place: Place, *, quick: bool = False) -> Case:
    """All of a layer's routed experts, tokens spread evenly at random."""
    pairs = tokens * ACTIVE_EXPERTS

    def prepare(device: torch.device) -> Prepared:
        x, x_scales = activations(tokens, HIDDEN, device)
        gate_up = random_fp8(EXPERTS, 2 * EXPERT_WIDTH, HIDDEN, device=device)
        down = random_fp8(EXPERTS, HIDDEN, EXPERT_WIDTH, device=device)
        blocks = EXPERTS, 2 * EXPERT_WIDTH // 128, HIDDEN // 128
        gate_up_scales = powers_of_two(*blocks, device=device)
        gate_up_scales *= 2.0**-2  # so that SwiGLU's inputs are of about 1
        down_scales = powers_of_two(EXPERTS, HIDDEN // 128, EXPERT_WIDTH // 128, device=device)
        noise = torch.rand(tokens, EXPERTS, device=device)
        experts = noise.topk(ACTIVE_EXPERTS, dim=1).indices.int()
        weights = torch.rand(tokens, ACTIVE_EXPERTS, device=device)

        def run() -> Tensor:
            return routed_experts(
                x, x_scales, experts, weights, gate_up, gate_up_scales, down, down_scales,
                dtype=torch.bfloat16,
            )  # fmt: skip

        def error() -> float:
            found, plain = run(), []
            some = some_rows(tokens, device, 2)
            for token in some.tolist():
                row = dequantise_groups(x[token], x_scales[token], torch.float32)
                total = torch.zeros(HIDDEN, device=device)
                for expert, weight in zip(experts[token].tolist(), weights[token], strict=True):
                    wide = dequantise_weight(gate_up[expert], gate_up_scales[expert], torch.float32)
                    gate, up = (wide @ row).chunk(2)
                    wide = dequantise_weight(down[expert], down_scales[expert], torch.float32)
                    total += weight * (wide @ (F.silu(gate) * up))
                plain.append(total)
            return difference(found[some], torch.stack(plain))

        return Prepared(run, error)

    touched = min(EXPERTS, pairs)
    work = experts_work(tokens, touched)
    shape = f"{tokens} tokens, top {ACTIVE_EXPERTS} of {EXPERTS}"
    return Case("routed_experts", shape, work, prepare, CHAIN_TOLERANCE, place, quick)


def grouped_case(
    experts: int, rows: int, outputs: int, inputs: int, *, quick: bool = False
) -> Case:
    """One product of `experts` experts, `rows` sorted rows each."""

    def prepare(device: torch.device) -> Prepared:
        tokens = experts * rows
        every = torch.arange(experts, dtype=torch.int32, device=device)
        order = sort_by_expert(every.repeat_interleave(rows)[:, None], experts, 128)
        x, x_scales = activations(tokens, inputs, device)
        weights = random_fp8(experts, outputs, inputs, device=device)
        scales = powers_of_two(experts, -(-outputs // 128), inputs // 128, device=device)
        # The order's buffers have room for the worst case; rows behind the used ones are not read.
        room = order.pairs.numel() - tokens
        x = F.pad(x.view(torch.uint8), (0, 0, 0, room)).view(x.dtype)
        x_scales = F.pad(x_scales, (0, 0, 0, room))

        def run() -> Tensor:
            return grouped_linear(x, x_scales, weights, scales, order, gather=False)

        def error() -> float:
            found, worst = run(), 0.0
            for expert in range(experts):
                row = expert * rows + rows // 2
                wide = dequantise_groups(x[row], x_scales[row], torch.float32)
                plain = dequantise_weight(weights[expert], scales[expert], torch.float32) @ wide
                worst = max(worst, difference(found[row], plain))
            return worst

        return Prepared(run, error, lambda found: found[:tokens])

    one = linear_work(rows, outputs, inputs)
    work = Work(experts * one.flops, experts * one.bytes, "fp8")
    shape = f"{experts} x {rows} rows, N {outputs:,}, K {inputs:,}"
    return Case("grouped_linear", shape, work, prepare, TOLERANCE, None, quick)


def route_case(tokens: int, place: Place) -> Case:
    """Choosing experts from the router's logits."""

    def prepare(device: torch.device) -> Prepared:
        logits = normal(tokens, EXPERTS, device=device, dtype=torch.float32)
        bias = torch.rand(EXPERTS, device=device) / 10

        def run() -> tuple[Tensor, Tensor]:
            return route(
                logits, bias, groups=EXPERT_GROUPS, kept_groups=KEPT_GROUPS,
                top_k=ACTIVE_EXPERTS, scaling=2.5, normalise=True,
            )  # fmt: skip

        def error() -> float:
            biased = logits.sigmoid() + bias
            grouped = biased.unflatten(1, (EXPERT_GROUPS, -1))
            best = grouped.topk(2, 2).values.sum(2).topk(KEPT_GROUPS, 1).indices
            kept = torch.zeros(tokens, EXPERT_GROUPS, dtype=torch.bool, device=device)
            kept.scatter_(1, best, True)
            allowed = grouped.masked_fill(~kept[:, :, None], -torch.inf).flatten(1)
            expected = allowed.topk(ACTIVE_EXPERTS, 1).indices.sort(1).values
            wrong = (run()[0].sort(1).values != expected).any(1).sum()
            return float(wrong) / tokens

        return Prepared(run, error)

    work = Work(0, tokens * (4 * EXPERTS + 8 * ACTIVE_EXPERTS), "none")
    # Equal sums may be ordered otherwise by a sigmoid that rounds otherwise.
    return Case("routing", f"{tokens} tokens", work, prepare, 0.001, place)


def quantise_cases() -> Iterator[Case]:
    """Yields what quantises activations, alone and with what comes before it."""

    def normed(tokens: int) -> Case:
        def prepare(device: torch.device) -> Prepared:
            x, residual = (normal(tokens, HIDDEN, device=device) for _ in range(2))
            weight = torch.ones(HIDDEN, device=device)

            def error() -> float:
                found = rms_norm_quantise(x, weight, 1e-6, residual)
                wide = (x + residual).double()
                plain = wide * (wide.square().mean(1, keepdim=True) + 1e-6).rsqrt()
                return difference(
                    dequantise_groups(found.values, found.scales, torch.float32), plain
                )

            return Prepared(lambda: rms_norm_quantise(x, weight, 1e-6, residual), error)

        work = Work(0, tokens * HIDDEN * (2 + 2 + 2 + 1), "none")
        return Case("quantise", f"RMSNorm of {tokens} sums", work, prepare, 1e-3)

    def gated(tokens: int) -> Case:
        def prepare(device: torch.device) -> Prepared:
            gate_up = normal(tokens, 2 * EXPERT_WIDTH, device=device)

            def error() -> float:
                gate, up = gate_up.double().chunk(2, 1)
                found = dequantise_groups(*swiglu_quantise(gate_up), torch.float32)
                return difference(found, F.silu(gate) * up)

            return Prepared(lambda: swiglu_quantise(gate_up), error)

        work = Work(0, tokens * EXPERT_WIDTH * (4 + 1), "none")
        return Case("quantise", f"SwiGLU of {tokens} rows", work, prepare, 1e-3)

    yield normed(MANY)
    yield normed(FEW)
    yield gated(MANY * ACTIVE_EXPERTS)
