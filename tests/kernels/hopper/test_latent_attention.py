"""The bits of the FP8 conversion: what the interpreter runs, and the assembly that it cannot."""

from __future__ import annotations

import re

import pytest
import torch
import triton
import triton.language as tl

from kernels.hopper.latent_attention import (
    BFLOAT16_TILES,
    E4M3_TO_BFLOAT16,
    FP8_TILES,
    HEADS,
    e4m3_by_shifts,
)

CODES = torch.tensor([c for c in range(256) if c & 0x7F != 0x7F], dtype=torch.uint8)
"""All but the two NaN."""
VALUES = CODES.view(torch.float8_e4m3fn).double()


@triton.jit
def shifts_kernel(codes, out, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(out + at, e4m3_by_shifts(tl.load(codes + at)))


def test_shifts_are_exact_for_every_code(device: torch.device) -> None:
    codes = torch.arange(256, dtype=torch.uint8, device=device)
    out = torch.empty(256, device=device)
    shifts_kernel[(1,)](codes, out, 256)
    assert torch.equal(out.double().cpu()[CODES.long()] * 2.0**120, VALUES)


def run_ptx(assembly: str, argument: int) -> tuple[int, int]:
    """What the four instructions that the assembly uses make of the register $2: ($0, $1)."""
    registers = {"$2": argument}

    def value(operand: str) -> int:
        return registers[operand] if operand in registers else int(operand, 0)

    for line in re.sub(r"\.reg [^;]*;", "", assembly.strip().strip("{}")).split(";"):
        if not line.strip():
            continue
        opcode, rest = line.split(maxsplit=1)
        target, *operands = [part.strip() for part in rest.split(",")]
        a, b, *more = [value(operand) for operand in operands]
        if opcode == "prmt.b32":  # bytes of b:a picked by the selector's nibbles
            both = (b << 32 | a).to_bytes(8, "little")
            picked = [both[more[0] >> 4 * i & 7] for i in range(4)]
            registers[target] = int.from_bytes(bytes(picked), "little")
        elif opcode == "shr.u32":
            registers[target] = a >> b
        elif opcode == "and.b32":
            registers[target] = a & b
        elif opcode == "lop3.b32":  # bit i of the result: bit 4a + 2b + c of the table
            c, table = more
            bits = [
                table >> ((a >> i & 1) * 4 + (b >> i & 1) * 2 + (c >> i & 1)) & 1 for i in range(32)
            ]
            registers[target] = sum(bit << i for i, bit in enumerate(bits))
        else:
            raise AssertionError(f"no emulation of {opcode}")
    return registers["$0"], registers["$1"]


def bfloat16_from(bits: list[int]) -> torch.Tensor:
    return torch.tensor(bits, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)


def test_assembly_is_exact_for_every_code_in_every_byte() -> None:
    codes = CODES.tolist()
    for byte in range(4):
        found = []
        for code in codes:
            others = 0x5AA5C33C & ~(0xFF << 8 * byte)
            words = run_ptx(E4M3_TO_BFLOAT16.value, others | code << 8 * byte)
            found.append(words[byte // 2] >> 16 * (byte % 2) & 0xFFFF)
        assert torch.equal(bfloat16_from(found).double() * 2.0**120, VALUES)


@pytest.mark.parametrize("exponent", range(-40, 8))
def test_scaling_in_bfloat16_is_exact_for_powers_of_two(exponent: int) -> None:
    small = (VALUES * 2.0**-120).bfloat16()
    factor = torch.tensor(2.0**exponent * 2.0**120).bfloat16()
    assert torch.equal((small * factor).double(), VALUES * 2.0**exponent)


def test_every_number_of_heads_has_a_tile() -> None:
    for tiles in (FP8_TILES, BFLOAT16_TILES):
        assert set(tiles) == set(HEADS)
        assert all(heads % tile.heads == 0 for heads, tile in tiles.items())
