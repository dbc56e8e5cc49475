from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.cache import IndexCache
from kernels.hadamard import hadamard, hadamard_reference
from kernels.hopper.index_key_writer import write_index_keys
from kernels.norm import layer_norm, layer_norm_reference
from kernels.rope import rope_half_split, rope_reference, rope_table

D, R, EPS, PAGE_TOKENS, PAGES = 128, 32, 1e-2, 64, 3
POSITIONS = [0, 1, 70, 3, 131_071, 9]
SLOTS = [64, -1, 0, 191, 70, -1]


def cache(device: torch.device, width: int = D) -> IndexCache:
    whole = IndexCache(
        2,
        PAGES,
        page_tokens=PAGE_TOKENS,
        width=width,
        dtype="fp8",
        compute_dtype=torch.float32,
        device=device,
    )
    whole.pages.fill_(0xFF)
    return whole


def inputs(dtype: torch.dtype, device: torch.device, width: int = D) -> dict[str, Any]:
    """Six tokens, as columns of one wider product; two of them are padding."""
    generator = torch.Generator().manual_seed(0)
    product = torch.randn(6, width + 5, generator=generator)
    product[:, 9] *= 30  # an outlier channel, what the Hadamard rotation is for
    inv_freq = 10_000.0 ** (-torch.arange(0, R, 2) / R)
    return {
        "slots": torch.tensor(SLOTS, device=device),
        "keys": product.to(device, dtype)[:, 5:],
        "weight": (1 + 0.1 * torch.randn(width, generator=generator)).to(device),
        "bias": (0.1 * torch.randn(width, generator=generator)).to(device),
        "eps": EPS,
        "table": rope_table(inv_freq, torch.tensor(POSITIONS)).to(device),
        "page_tokens": PAGE_TOKENS,
    }


@pytest.mark.parametrize(("dtype", "width"), [(torch.bfloat16, 128), (torch.float32, 64)])
def test_pages_are_the_torch_path_s(device: torch.device, dtype: torch.dtype, width: int) -> None:
    given = inputs(dtype, device, width)
    found, expected = cache(device, width), cache(device, width)
    write_index_keys(found.pages[1], **given)
    kept = given["slots"] >= 0
    keys = layer_norm(given["keys"], given["weight"], given["bias"], EPS)
    keys[:, :R] = rope_half_split(keys[:, :R], given["table"])
    expected.write(1, given["slots"][kept], hadamard(keys)[kept])
    # Not a byte outside the four slots is touched. Within, the sums of the norm and of the
    # Hadamard rotation may differ in their last bits: one step, for values beside a tie.
    a, b = found.pages.int(), expected.pages.int()
    assert (a != b).float().mean() < 0.001
    assert ((a - b).abs() <= 1).all()
    scales = slice(PAGE_TOKENS * width, None)
    assert torch.equal(found.pages[1, :, scales], expected.pages[1, :, scales])


def test_keys_follow_the_float64_reference(device: torch.device) -> None:
    given = inputs(torch.float32, device)
    found = cache(device)
    found.pages.zero_()  # so that slots nobody wrote can be read
    write_index_keys(found.pages[0], **given)
    stored = found.read_pages(0, torch.arange(PAGES, device=device)).cpu().double()
    host = {n: v.cpu().double() for n, v in given.items() if n in ("keys", "weight", "bias")}
    keys = layer_norm_reference(host["keys"], host["weight"], host["bias"], EPS)
    inv_freq = 10_000.0 ** (-torch.arange(0, R, 2).double() / R)
    for t, slot in enumerate(SLOTS):
        if slot < 0:
            continue
        turned = rope_reference(keys[t, :R], POSITIONS[t], inv_freq, half_split=True)
        key = hadamard_reference(torch.cat((turned, keys[t, R:])))
        # Half a step of three mantissa bits, or of the subnormals at a scale of at most amax/224;
        # and what angles in float32 are off by at 131,071.
        limit = key.abs() * 2**-4 + key.abs().max() / 224 * 2**-10 + 1e-5
        assert ((stored[slot] - key).abs() <= limit).all()


def test_a_constant_key_is_its_bias(device: torch.device) -> None:
    # Variance 0; the norm must not divide by it.
    given = inputs(torch.bfloat16, device)
    given["keys"] = torch.full_like(given["keys"], 3.0)
    given["bias"] = torch.zeros(D, device=device)
    given["bias"][R:] = 1.0
    found = cache(device)
    found.pages.zero_()
    write_index_keys(found.pages[0], **given)
    key = found.read_pages(0, torch.tensor([0], device=device))[0].cpu()
    expected = hadamard(torch.cat((torch.zeros(R), torch.ones(D - R))))
    torch.testing.assert_close(key, expected, atol=1e-3, rtol=2**-4)


def test_a_key_does_not_depend_on_the_other_tokens(device: torch.device) -> None:
    given = inputs(torch.bfloat16, device)
    together, alone = cache(device), cache(device)
    write_index_keys(together.pages[0], **given)
    for t in range(6):
        one = {n: v[t : t + 1] if n in ("slots", "keys", "table") else v for n, v in given.items()}
        write_index_keys(alone.pages[0], **one)
    assert torch.equal(together.pages, alone.pages)


def test_pages_may_lie_apart(device: torch.device) -> None:
    given = inputs(torch.bfloat16, device)
    packed = cache(device)
    write_index_keys(packed.pages[0], **given)
    size = packed.pages.shape[2]
    apart = torch.full((PAGES, size + 12), 0xFF, dtype=torch.uint8, device=device)
    write_index_keys(apart[:, :size], **given)
    assert torch.equal(apart[:, :size], packed.pages[0])
    assert (apart[:, size:] == 0xFF).all()


def test_pages_beyond_two_to_the_31_bytes(device: torch.device) -> None:
    # Pages 1.2 GB apart, of which nothing else is touched: a wrapped offset would land elsewhere.
    if device.type != "cpu":
        pytest.skip("a GPU has no memory that is only addresses")
    given = inputs(torch.bfloat16, device)
    packed = cache(device)
    write_index_keys(packed.pages[0], **given)
    size, distance = packed.pages.shape[2], 1_200_000_000
    apart = torch.empty(distance * (PAGES - 1) + size, dtype=torch.uint8)
    pages = apart.as_strided((PAGES, size), (distance, 1))
    write_index_keys(pages, **given)
    written = packed.pages[0] != 0xFF
    assert torch.equal(pages[written], packed.pages[0][written])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slots": torch.zeros(5, dtype=torch.int64)}, r"slots has shape \[5\]; it must be \[6\]"),
        ({"bias": torch.ones(D).bfloat16()}, "bias is bfloat16; must be float32"),
        ({"keys": torch.ones(6, 2 * D)[:, ::2]}, "keys has strides"),
        ({"keys": torch.ones(6, 96)}, "the index width is 96; allowed are 16, 32, 64, 128, 256"),
        ({"table": torch.ones(6, D, dtype=torch.complex64)}, "table rotates 256 channels"),
        ({"page_tokens": 48}, "page_tokens is 48; it must be a power of two"),
        ({"page_tokens": 32}, r"pages has shape \[3, 8448\]; it must be \[any, 4224\]"),
    ],
)
def test_what_the_kernel_does_not_support_is_named(
    device: torch.device, change: dict[str, Any], message: str
) -> None:
    change = {n: v.to(device) if isinstance(v, Tensor) else v for n, v in change.items()}
    with pytest.raises(ValueError, match=message):
        write_index_keys(cache(device).pages[0], **inputs(torch.float32, device) | change)
