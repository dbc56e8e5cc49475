"""What the benchmark runs: a shape of an op, its work, its inputs and its check."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

# The sizes of DeepSeek-V3.2 (671B), from its config.json.
LAYERS, DENSE_LAYERS = 61, 3
HIDDEN, VOCABULARY = 7168, 129_280
HEADS, QUERY_RANK, LATENT, ROPE = 128, 1536, 512, 64
NOPE, VALUE = 128, 128
INDEX_HEADS, INDEX_WIDTH, TOP_K = 64, 128, 2048
DENSE_WIDTH, EXPERT_WIDTH = 18_432, 2048
EXPERTS, EXPERT_GROUPS, KEPT_GROUPS, ACTIVE_EXPERTS = 256, 8, 4, 8
PAGE_TOKENS = 64
LATENT_ROW_BYTES = LATENT + 4 * (LATENT // 128) + 2 * ROPE
INDEX_KEY_BYTES = INDEX_WIDTH + 4
SOFTMAX_SCALE = 0.1352337788608801
"""192^-0.5 times YaRN's (0.1 ln 40 + 1)^2."""

RERUNS = 20

Products = Literal["fp8", "bf16", "none"]
Phase = Literal["prefill", "decode"]


@dataclass(frozen=True)
class Work:
    """What must be done, counted: products as 2 FLOPs, bytes that must be read and written once."""

    flops: int
    bytes: int
    products: Products
    """Which product's ceiling holds for the FLOPs; none: there are no products to speak of."""


@dataclass(frozen=True)
class Place:
    """Where a case stands in a table of operator times."""

    phase: Phase
    component: str
    """As `cost_model` names it."""
    context_tokens: int
    """Positions before the average token of the case."""
    tokens: int
    """Tokens that share the case's time."""
    layers: int
    """Layers of the model that run it."""


@dataclass(frozen=True)
class Prepared:
    """Inputs on the device, wrapped in what to do with them."""

    run: Callable[[], object]
    """Nothing in it waits for the device."""
    error: Callable[[], float]
    """Runs it and returns how far it lies from the plain reference, on part of the output."""
    repeated: Callable[[Any], object] = lambda returned: returned
    """Of what `run` returned, or wrote: the tensors whose bits every run must give again."""


@dataclass(frozen=True)
class Case:
    """One shape of one op."""

    op: str
    shape: str
    work: Work
    prepare: Callable[[torch.device], Prepared]
    tolerance: float
    """Largest allowed `Prepared.error`."""
    place: Place | None = None
    quick: bool = False
    """Also run by --quick."""


def difference(found: Tensor, expected: Tensor) -> float:
    """Returns 1 - 2 <x, y> / (|x|^2 + |y|^2) in float64: 0 where equal, some 3e-6 for bfloat16's
    rounding; infinite where NaN or infinities do not stand at the same places."""
    x, y = found.double().flatten(), expected.double().flatten()
    finite = y.isfinite()
    if not torch.equal(x.isfinite(), finite) or not torch.equal(x[~finite], y[~finite]):
        return float("inf")
    x, y = x[finite], y[finite]
    size = float((x * x + y * y).sum())
    return 1 - 2 * float((x * y).sum()) / size if size else 0.0


def other_bits(prepared: Prepared, reruns: int = RERUNS) -> int:
    """Returns how many of the reruns give other bits than a first run."""

    def bits() -> list[Tensor]:
        found = prepared.repeated(prepared.run())
        tensors = found if isinstance(found, tuple) else (found,)
        return [x.contiguous().view(torch.uint8) for x in tensors if isinstance(x, Tensor)]

    first = [x.clone() for x in bits()]  # a cache writer writes the same tensor again
    if not first:
        raise ValueError("the case names no tensor that every run must give again")
    return sum(not all(map(torch.equal, bits(), first)) for _ in range(reruns))


def normal(*shape: int, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Returns normal values; the seed is the caller's."""
    return torch.randn(*shape, device=device, dtype=torch.float32).to(dtype)


def random_fp8(*shape: int, device: torch.device) -> Tensor:
    """Returns e4m3 values of all finite codes of magnitudes up to 15; large tensors repeat."""
    count = 1
    for size in shape:
        count *= size
    few = min(count, 1 << 26)
    codes = torch.randint(0, 0x58, (few,), dtype=torch.uint8, device=device)
    codes |= torch.randint(0, 2, (few,), dtype=torch.uint8, device=device) << 7
    whole = codes.repeat(-(-count // few))[:count] if few < count else codes
    return whole.view(torch.float8_e4m3fn).view(shape)


def powers_of_two(*shape: int, device: torch.device) -> Tensor:
    """Returns float32 scales 2^-8 to 2^-5."""
    return torch.randint(-8, -4, shape, device=device).float().exp2()


def some_rows(count: int, device: torch.device, most: int = 8) -> Tensor:
    """Returns up to `most` row numbers spread over `count` rows, first and last included."""
    return torch.linspace(0, count - 1, min(count, most), device=device).round().long()
