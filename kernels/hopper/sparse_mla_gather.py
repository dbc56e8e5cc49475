# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""The partition of `kernels.hopper.sparse_mla_gluon` that fills tiles: gather, convert, hand over.

Its four warps do nothing else, so that their registers may hold a whole tile of FP8 rows that are
still on their way from memory: 40 KiB an SM, while the products run on the tile before.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier

from kernels.hopper.latent_attention import E4M3_TO_BFLOAT16, TWO_TO_120

ENTRIES = gl.constexpr(64)
"""Latent rows of a tile."""
TILES = gl.constexpr(2)
"""Buffers of tiles: 72 KiB each, beside 72 KiB of queries and 8 KiB of weights."""
WORDS = gl.constexpr(32)
"""32-bit words of a row that are read at once: the codes of a group, or the rope key."""

# Of a tile of words [entries, WORDS]: a thread reads 16 bytes, four lanes a row's 64 bytes. Eight
# lanes write their 16-byte chunks of two neighbouring rows to different banks (see the swizzle).
GATHERED = gl.constexpr(gl.BlockedLayout([1, 4], [8, 4], [4, 1], [1, 0]))
# The words of wgmma's operands in shared memory: see OPERAND in `sparse_mla_gluon`.
OPERAND_WORDS = gl.constexpr(gl.NVMMASharedLayout(128, 32, 2))

MULTIPLY_PAIRS = gl.constexpr("mul.rn.bf16x2 $0, $1, $2;")
# Public from triton 3.9 on.
_PUBLIC_REINTERPRET = gl.constexpr(hasattr(gl.shared_memory_descriptor, "reinterpret"))


@gluon.jit
def parity(step, buffers: gl.constexpr):
    """Parity of the phase in which one of `buffers` is filled for `step`."""
    return (step // buffers) & 1


@gluon.jit
def appended(items, item):
    return items + (item,)  # noqa: RUF005 (the compiler does not know unpacking)


@gluon.jit
def as_words(buffers, WIDTH: gl.constexpr):
    """The bfloat16 buffers [TILES, ENTRIES, 2 WIDTH] as 32-bit words [TILES, ENTRIES, WIDTH]."""
    if _PUBLIC_REINTERPRET:
        return buffers.reinterpret(gl.int32, [TILES, ENTRIES, WIDTH], OPERAND_WORDS)
    else:
        return buffers._reinterpret(gl.int32, [TILES, ENTRIES, WIDTH], OPERAND_WORDS)


@gluon.jit
def read_slots(slots, entry, entries):
    # A cache has fewer than 2^31 slots; byte offsets need the 64 bits.
    return gl.load(slots + entry, mask=entry < entries, other=-1).to(gl.int32)


@gluon.jit
def read_words(words, row, valid, first: gl.constexpr):
    """Words [ENTRIES, WORDS] from word `first` of rows that start at words `row`, 0 if not valid.

    Words, not bytes: what waits in registers for its turn takes four codes to a register.
    """
    word = first + gl.arange(0, WORDS, gl.SliceLayout(0, GATHERED))
    return gl.load(words + row[:, None] + word[None, :], mask=valid[:, None], other=0)


@gluon.jit
def read_scales(words, row, valid, C: gl.constexpr, GROUP: gl.constexpr):
    """A scale [ENTRIES] for each group."""
    at = words.to(gl.pointer_type(gl.float32)) + row
    scales = ()
    for group in gl.static_range(C // GROUP):
        scales = appended(scales, gl.load(at + (C // 4 + group), mask=valid, other=0.0))
    return scales


@gluon.jit
def dequantise(codes, scale):
    """Pairs of bfloat16 [ENTRIES, 2 WORDS] from four codes a word [ENTRIES, WORDS].

    See `kernels.hopper.latent_attention`.
    """
    low, high = gl.inline_asm_elementwise(
        E4M3_TO_BFLOAT16, "=r,=r,r", [codes], dtype=(gl.int32, gl.int32), is_pure=True, pack=1
    )
    factor = (scale * TWO_TO_120).to(gl.bfloat16).to(gl.uint16, bitcast=True).to(gl.int32)
    factors = (factor | factor << 16)[:, None]
    low = gl.inline_asm_elementwise(
        MULTIPLY_PAIRS, "=r,r,r", [low, factors], dtype=gl.int32, is_pure=True, pack=1
    )
    high = gl.inline_asm_elementwise(
        MULTIPLY_PAIRS, "=r,r,r", [high, factors], dtype=gl.int32, is_pure=True, pack=1
    )
    return gl.reshape(gl.join(low, high), [ENTRIES, 2 * WORDS])


@gluon.jit
def gather_tiles(
    cache, slots, latents, ropes, limits, tile_full, tile_empty, entries, tiles,
    C: gl.constexpr, R: gl.constexpr, ROW: gl.constexpr, GROUP: gl.constexpr,
):  # fmt: skip
    """The partition that fills tiles: `tiles` of them from the list `slots` of `entries` slots.

    A tile's slots are read two steps before it is needed and its rows one step before, into the
    registers that the tile before has just left.
    """
    groups: gl.constexpr = C // GROUP
    rope_word: gl.constexpr = C // 4 + groups
    words = cache.to(gl.pointer_type(gl.int32))
    latent_words = as_words(latents, C // 2)
    rope_words = as_words(ropes, R // 2)

    entry = gl.arange(0, ENTRIES, gl.SliceLayout(1, GATHERED))
    slot = read_slots(slots, entry, entries)
    valid = slot >= 0
    row = gl.maximum(slot, 0).to(gl.int64) * (ROW // 4)
    codes = ()
    for group in gl.static_range(groups):
        codes = appended(codes, read_words(words, row, valid, group * WORDS))
    rope = read_words(words, row, valid, rope_word)
    scales = read_scales(words, row, valid, C, GROUP)
    entry += ENTRIES
    slot = read_slots(slots, entry, entries)
    for step in range(tiles):
        buffer = step % TILES
        limit = gl.where(valid, float("inf"), float("-inf"))
        valid = slot >= 0
        row = gl.maximum(slot, 0).to(gl.int64) * (ROW // 4)
        entry += ENTRIES
        slot = read_slots(slots, entry, entries)

        mbarrier.wait(tile_empty.index(buffer), parity(step, TILES) ^ 1)
        limits.index(buffer).store(limit)
        next_codes = ()
        for group in gl.static_range(groups):
            pairs = dequantise(codes[group], scales[group])
            latent_words.index(buffer).slice(group * 2 * WORDS, 2 * WORDS, dim=1).store(pairs)
            next_codes = appended(next_codes, read_words(words, row, valid, group * WORDS))
        codes = next_codes
        rope_words.index(buffer).store(rope)
        rope = read_words(words, row, valid, rope_word)
        scales = read_scales(words, row, valid, C, GROUP)
        fence_async_shared()
        mbarrier.arrive(tile_full.index(buffer))
