from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.cache import CacheDtype, LatentCache
from kernels.fp8 import dequantise_groups
from kernels.hopper.latent_writer import write_latents
from kernels.norm import rms_norm, rms_norm_reference
from kernels.rope import rope_interleaved, rope_reference, rope_table

C, R, EPS, SLOTS = 256, 16, 1e-2, 12


def cache(dtype: CacheDtype, device: torch.device, latent: int = C) -> LatentCache:
    whole = LatentCache(
        2,
        SLOTS,
        latent=latent,
        rope=R,
        dtype=dtype,
        compute_dtype=torch.float32,
        device=device,
    )
    whole.rows.view(torch.uint8).fill_(0xFF)  # NaN, in every one of the dtypes
    return whole


def inputs(dtype: torch.dtype, device: torch.device, latent: int = C) -> dict[str, Any]:
    """Six tokens, as columns of one wider product; two of them are padding."""
    generator = torch.Generator().manual_seed(0)
    product = torch.randn(6, 7 + latent + R + 3, generator=generator).to(dtype)
    product[3, 7:] = 0
    positions = torch.tensor([0, 1, 70, 3, 131_071, 9])
    inv_freq = 10_000.0 ** (-torch.arange(0, R, 2) / R)
    product = product.to(device)
    return {
        "latents": product[:, 7 : 7 + latent],
        "rope_keys": product[:, 7 + latent : 7 + latent + R],
        "slots": torch.tensor([4, -1, 0, 11, 7, -1], device=device),
        "weight": (1 + 0.1 * torch.randn(latent, generator=generator)).to(device),
        "eps": EPS,
        "table": rope_table(inv_freq, positions).to(device),
        "inv_freq": inv_freq,
        "positions": positions,
    }


def launch(rows: Tensor, given: dict[str, Any]) -> None:
    write_latents(
        rows, given["slots"], given["latents"], given["rope_keys"],
        weight=given["weight"], eps=given["eps"], table=given["table"],
    )  # fmt: skip


CASES: list[tuple[CacheDtype, torch.dtype, int]] = [
    ("fp8", torch.bfloat16, 256),
    ("fp8", torch.float32, 384),
    ("bfloat16", torch.bfloat16, 96),
    ("float32", torch.float32, 128),
]


@pytest.mark.parametrize(("cache_dtype", "dtype", "latent"), CASES)
def test_rows_are_the_torch_path_s(
    device: torch.device, cache_dtype: CacheDtype, dtype: torch.dtype, latent: int
) -> None:
    given = inputs(dtype, device, latent)
    found, expected = (cache(cache_dtype, device, latent) for _ in range(2))
    launch(found.rows[1], given)
    kept = given["slots"] >= 0
    latents = rms_norm(given["latents"], given["weight"], EPS)[kept]
    ropes = rope_interleaved(given["rope_keys"], given["table"])[kept]
    expected.write(1, given["slots"][kept], latents, ropes)
    # Layer 0, the slots not named and the padding tokens: not a byte is touched. Of what is
    # written, the sum of squares may differ in its last bits: one step of the dtype, for the few
    # values that lie beside a tie.
    a, b = (x.rows.view(torch.uint8).int() for x in (found, expected))
    if cache_dtype == "float32":
        torch.testing.assert_close(found.rows, expected.rows, atol=1e-6, rtol=1e-6, equal_nan=True)
        return
    assert (a != b).float().mean() < 0.002
    assert ((a - b).abs() <= 1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_with_an_exact_norm_are_equal_bit_by_bit(
    device: torch.device, dtype: torch.dtype
) -> None:
    # Every square is 1 or 4, every second of each: any order of adding gives the same sum.
    given = inputs(dtype, device)
    signs = given["latents"].sign()
    signs[signs == 0] = 1
    given["latents"] = signs * torch.tensor([1.0, 2.0], device=device).repeat(C // 2).to(dtype)
    found, expected = (cache("fp8", device) for _ in range(2))
    launch(found.rows[0], given)
    kept = given["slots"] >= 0
    latents = rms_norm_exact(given["latents"], given["weight"])[kept]
    ropes = rope_interleaved(given["rope_keys"], given["table"])[kept]
    expected.write(0, given["slots"][kept], latents, ropes)
    assert torch.equal(found.rows, expected.rows)


def rms_norm_exact(x: Tensor, weight: Tensor) -> Tensor:
    """RMSNorm for a mean square of 2.5, rounded after each step as the kernel rounds."""
    norm = torch.sqrt(torch.tensor(2.5) + torch.tensor(EPS)).to(x.device)
    return (x.float() * weight / norm).to(x.dtype)


def test_rows_follow_the_float64_reference(device: torch.device) -> None:
    given = inputs(torch.float32, device)
    found = cache("fp8", device)
    launch(found.rows[0], given)
    kept = (given["slots"] >= 0).cpu()
    rows = found.rows[0, given["slots"][kept.to(device)]].cpu()
    values = rows[:, :C].view(torch.float8_e4m3fn)
    scales = rows[:, C : C + 8].contiguous().view(torch.float32)
    latents = dequantise_groups(values, scales, torch.float64)
    reference = rms_norm_reference(given["latents"].cpu().double(), given["weight"].cpu(), EPS)
    # Half a step of three mantissa bits, or half a step of the subnormals at the row's scale.
    limit = reference[kept].abs() * 2**-4 + scales.max(1, keepdim=True).values * 2**-10
    assert ((latents - reference[kept]).abs() <= limit * 1.001).all()
    ropes = rows[:, C + 8 :].contiguous().view(torch.bfloat16).double()
    for row, t in enumerate(kept.nonzero().flatten().tolist()):
        turned = rope_reference(
            given["rope_keys"][t].cpu().double(),
            int(given["positions"][t]),
            given["inv_freq"].double(),
            half_split=False,
        )
        torch.testing.assert_close(ropes[row], turned, atol=1e-4, rtol=2**-8)


def test_a_zero_row_is_zero_and_has_the_smallest_scale(device: torch.device) -> None:
    given = inputs(torch.bfloat16, device)
    found = cache("fp8", device)
    launch(found.rows[0], given)
    row = found.rows[0, 11].cpu()  # token 3
    assert not row[:C].any()
    assert row[C : C + 8].view(torch.float32).tolist() == [2.0**-22] * 2


def test_a_row_does_not_depend_on_the_other_tokens(device: torch.device) -> None:
    given = inputs(torch.bfloat16, device)
    together, alone = (cache("fp8", device) for _ in range(2))
    launch(together.rows[0], given)
    for t in range(6):
        one = {
            name: value[t : t + 1] if name in ("latents", "rope_keys", "slots", "table") else value
            for name, value in given.items()
        }
        launch(alone.rows[0], one)
    assert torch.equal(together.rows, alone.rows)


def test_rows_may_lie_apart(device: torch.device) -> None:
    given = inputs(torch.bfloat16, device)
    packed = cache("fp8", device)
    launch(packed.rows[0], given)
    width = packed.rows.shape[2]
    apart = torch.full((SLOTS, width + 20), 0xFF, dtype=torch.uint8, device=device)
    launch(apart[:, :width], given)
    assert torch.equal(apart[:, :width], packed.rows[0])
    assert (apart[:, width:] == 0xFF).all()


def test_slots_beyond_two_to_the_31_bytes(device: torch.device) -> None:
    # Rows 200 MB apart, of which nothing else is touched: a wrapped offset would land elsewhere.
    if device.type != "cpu":
        pytest.skip("a GPU has no memory that is only addresses")
    given = inputs(torch.bfloat16, device)
    packed = cache("fp8", device)
    launch(packed.rows[0], given)
    width, distance = packed.rows.shape[2], 200_000_000
    apart = torch.empty(distance * (SLOTS - 1) + width, dtype=torch.uint8)
    rows = apart.as_strided((SLOTS, width), (distance, 1))
    launch(rows, given)
    written = given["slots"][given["slots"] >= 0]
    assert torch.equal(rows[written], packed.rows[0, written])


def test_no_tokens_write_nothing(device: torch.device) -> None:
    given = inputs(torch.bfloat16, device)
    none = {n: v[:0] if isinstance(v, Tensor) and n != "weight" else v for n, v in given.items()}
    found = cache("fp8", device)
    launch(found.rows[0], none)
    assert (found.rows == 0xFF).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slots": torch.zeros(6, dtype=torch.int32)}, "slots is int32; must be int64"),
        ({"weight": torch.ones(C - 1)}, r"weight has shape \[255\]; it must be \[256\]"),
        ({"latents": torch.ones(6, 2 * C)[:, ::2]}, r"latents has strides .* the last must be 1"),
        ({"rope_keys": torch.ones(6, R, dtype=torch.float64)}, "rope_keys is float64"),
        ({"table": torch.ones(6, R, dtype=torch.complex64)}, r"table has shape \[6, 16\]"),
    ],
)
def test_what_the_kernel_does_not_support_is_named(
    device: torch.device, change: dict[str, Tensor], message: str
) -> None:
    given = inputs(torch.float32, device) | {n: v.to(device) for n, v in change.items()}
    with pytest.raises(ValueError, match=message):
        launch(cache("fp8", device).rows[0], given)


def test_fp8_rows_of_an_odd_width_are_named(device: torch.device) -> None:
    given = inputs(torch.float32, device, latent=96)
    rows = torch.zeros(4, 96 + 2 * R, dtype=torch.uint8, device=device)
    with pytest.raises(ValueError, match="latents has width 96; FP8 rows need a multiple of 128"):
        launch(rows, given)
