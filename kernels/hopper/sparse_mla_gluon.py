# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Sparse MLA over FP8 rows once more, in Gluon: one CTA, three partitions of warps at once.

`kernels.hopper.sparse_mla` leaves it to Triton who loads and when. Gluon is the layer below:
layouts, shared memory, barriers and registers are written out, and the warps of a CTA may run
different programs. Here four warps each

    gather_tiles     read latent rows, 64 at a time, convert them to bfloat16 in shared memory, and
                     have the next 64 on their way meanwhile;
    average_left     score a tile, take the softmax, and average the latents' left half;
    average_right    average the right half with the weights that they are handed.

The sums, 64 heads by 512 channels in float32, fill 128 registers of each thread of eight warps, so
that two partitions must hold a half each. That the right one lags behind is welcome: its product is
meant to keep the tensor cores busy while the left one is at its softmax, and reading and converting
take none of their instructions.

    tile_full[2]     a tile stands in this buffer                gather_tiles -> both averages
    tile_empty[2]    both are done with it (two arrivals)        both averages -> gather_tiles
    weights_full     a step's weights and decays are there       average_left -> average_right
    weights_empty    they have been used                         average_right -> average_left

Such a barrier counts arrivals down and then begins its next phase. Waiting for parity p ends when
the phase of that parity is over. A new barrier is in phase 0, and the one before it, of parity 1,
counts as over. Step s fills a buffer that was filled s // buffers times before: who reads it waits
for `parity(s, buffers)`, who writes it for the other parity, which the first time is over.

One thread arrives for its partition; before that the compiler lets the others catch up. Products
read shared memory by a path of their own, the asynchronous proxy: who stores operands says
`fence_async_shared` before it arrives.

**No GPU has run this kernel.** Triton's interpreter does not know Gluon; tests execute its Python
with tensors in place of layouts, over random orders of the partitions, and look at what the
compiler made of it. Left to show: that the hardware does what the layouts say, that the barriers
hold between real threads, and the speed. The launcher of `kernels.hopper.sparse_mla` therefore
takes it on request only.

Source: DeepSeek-V3.2 report, eq. 2; PTX ISA, sections on mbarrier, wgmma and the async proxy.
"""

from __future__ import annotations

import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from kernels.cache import LATENT_GROUP
from kernels.hopper.latent_attention import RUNNING_MAX
from kernels.hopper.sparse_mla_gather import ENTRIES, TILES, gather_tiles, parity
from kernels.hopper.specialisation import SHARED_BYTES_PER_CTA, Budget, Specialisation

HEADS = gl.constexpr(64)
"""Query heads of a CTA: the rows of one wgmma of four warps."""
CHANNELS = gl.constexpr(64)
"""Query channels that are copied at once."""
LATENT, ROPE = 512, 64
"""The sizes that registers and shared memory were laid out for."""
WARPS = 4
RIGHT_REGISTERS, GATHER_REGISTERS = gl.constexpr(160), gl.constexpr(128)
"""Per thread. What they leave of the launch's 3 x 168 goes to average_left: 216, for 128 sums, 32
scores and 16 pairs of weights."""

QUERIES = gl.constexpr(gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0]))
# wgmma's accumulators, 16 rows a warp: m64n64k16 and m64n256k16.
SCORES = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16]))
SUMS = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 256, 16]))
# wgmma's operands in shared memory: blocks of 128 bytes a row, whose 16-byte chunks are permuted
# by the row.
OPERAND = gl.constexpr(gl.NVMMASharedLayout(128, 16, 2))
VECTOR = gl.constexpr(gl.SwizzledSharedLayout(1, 1, 1, [0]))


@gluon.jit
def copy_queries(q, query, query_rope, head_stride, C: gl.constexpr):
    head = gl.arange(0, HEADS, gl.SliceLayout(1, QUERIES))
    channel = gl.arange(0, CHANNELS, gl.SliceLayout(0, QUERIES))
    rows = q + head[:, None].to(gl.int64) * head_stride + channel[None, :]
    for first in gl.static_range(0, C, CHANNELS):
        query.slice(first, CHANNELS, dim=1).store(gl.load(rows + first))
    query_rope.store(gl.load(rows + C))
    fence_async_shared()


@gluon.jit
def weigh(scores, limit, best, total, scale_log2):
    """The online softmax: new maximum and sum, what older sums decay by, and the tile's weights.

    limit: infinity for an entry, -infinity for none. The smaller of a number and NaN is the number:
    what the rows of no entry left in the scores ends here.
    """
    scores = gl.minimum(scores, limit[None, :])
    higher = gl.maximum(best, gl.max(scores, 1) * scale_log2)
    decay = gl.exp2(best - higher)
    weights = gl.exp2(scores * scale_log2 - higher[:, None])
    return higher, total * decay + gl.sum(weights, 1), decay, weights.to(gl.bfloat16)


@gluon.jit
def store_half(out, out_row, sums, inverse, first: gl.constexpr, C: gl.constexpr):
    row = out_row + gl.arange(0, HEADS, gl.SliceLayout(1, SUMS))
    channel = first + gl.arange(0, C // 2, gl.SliceLayout(0, SUMS))
    averages = (sums * inverse[:, None]).to(out.dtype.element_ty)
    gl.store(out + row[:, None] * C + channel[None, :], averages)


@gluon.jit
def average_left(
    q, latents, ropes, limits, query, query_rope, shared_weights, decays,
    tile_full, tile_empty, weights_full, weights_empty,
    out, lse, out_row, q_head_stride, scale_log2, tiles,
    C: gl.constexpr, PARTIAL: gl.constexpr,
):  # fmt: skip
    """The partition that scores, and averages the first half of the channels."""
    copy_queries(q, query, query_rope, q_head_stride, C)
    best = gl.full([HEADS], RUNNING_MAX, gl.float32, gl.SliceLayout(1, SCORES))
    total = gl.zeros([HEADS], gl.float32, gl.SliceLayout(1, SCORES))
    sums = gl.zeros([HEADS, C // 2], gl.float32, SUMS)
    for step in range(tiles):
        buffer = step % TILES
        tile = latents.index(buffer)
        mbarrier.wait(tile_full.index(buffer), parity(step, TILES))
        # One copy of a tile is keys, transposed, and values.
        keys, rope_keys = tile.permute((1, 0)), ropes.index(buffer).permute((1, 0))
        scores = gl.zeros([HEADS, ENTRIES], gl.float32, SCORES)
        scores = warpgroup_mma(query, keys, scores, use_acc=False, is_async=True)
        scores = warpgroup_mma(query_rope, rope_keys, scores, is_async=True)
        scores = warpgroup_mma_wait(0, deps=(scores,))

        limit = limits.index(buffer).load(gl.SliceLayout(0, SCORES))
        best, total, decay, weights = weigh(scores, limit, best, total, scale_log2)
        mbarrier.wait(weights_empty, parity(step, 1) ^ 1)
        shared_weights.store(weights)
        decays.store(decay)
        fence_async_shared()
        mbarrier.arrive(weights_full)

        # The accumulator of one product has the layout of the next one's operand: the weights
        # that this half takes never leave their registers.
        sums = sums * gl.convert_layout(decay, gl.SliceLayout(1, SUMS))[:, None]
        operand = gl.convert_layout(weights, gl.DotOperandLayout(0, SUMS, 2))
        sums = warpgroup_mma(operand, tile.slice(0, C // 2, dim=1), sums, is_async=True)
        sums = warpgroup_mma_wait(0, deps=(sums,))
        mbarrier.arrive(tile_empty.index(buffer))

    # A last decay for the other half: by the sum of the weights. No entry: 0 and -infinity.
    some = total > 0
    safe = gl.where(some, total, 1.0)
    inverse = 1.0 / safe
    mbarrier.wait(weights_empty, parity(tiles, 1) ^ 1)
    decays.store(inverse)
    mbarrier.arrive(weights_full)

    store_half(out, out_row, sums, gl.convert_layout(inverse, gl.SliceLayout(1, SUMS)), 0, C)
    logarithm = gl.where(some, best + gl.log2(safe), float("-inf"))
    if not PARTIAL:
        logarithm *= 0.6931471805599453  # ln 2
    gl.store(lse + out_row + gl.arange(0, HEADS, gl.SliceLayout(1, SCORES)), logarithm)


@gluon.jit
def average_right(
    latents, shared_weights, decays, tile_empty, weights_full, weights_empty,
    out, out_row, tiles, C: gl.constexpr,
):  # fmt: skip
    """The partition that averages the second half of the channels.

    It need not wait for tile_full: who handed the weights over did.
    """
    sums = gl.zeros([HEADS, C // 2], gl.float32, SUMS)
    for step in range(tiles):
        buffer = step % TILES
        mbarrier.wait(weights_full, parity(step, 1))
        sums = sums * decays.load(gl.SliceLayout(1, SUMS))[:, None]
        values = latents.index(buffer).slice(C // 2, C // 2, dim=1)
        sums = warpgroup_mma(shared_weights, values, sums, is_async=True)
        sums = warpgroup_mma_wait(0, deps=(sums,))
        mbarrier.arrive(weights_empty)
        mbarrier.arrive(tile_empty.index(buffer))
    mbarrier.wait(weights_full, parity(tiles, 1))
    store_half(out, out_row, sums, decays.load(gl.SliceLayout(1, SUMS)), C // 2, C)


@gluon.jit
def sparse_mla_gluon_kernel(
    q,
    cache,
    slots,
    out,
    lse,
    scale_log2,
    entries,
    entries_per_split,
    splits,
    q_token_stride,
    q_head_stride,
    slots_stride,
    H: gl.constexpr,
    C: gl.constexpr,
    R: gl.constexpr,
    ROW: gl.constexpr,
    GROUP: gl.constexpr,
    PARTIAL: gl.constexpr,
):
    # The arguments are those of `sparse_mla_kernel`.
    pid = gl.program_id(0)
    head_blocks: gl.constexpr = H // HEADS
    part = pid // head_blocks
    split = part % splits
    token = (part // splits).to(gl.int64)
    head = (pid % head_blocks) * HEADS
    begin = split * entries_per_split
    part_entries = gl.minimum(entries - begin, entries_per_split)
    # A list without entries is one tile without entries.
    tiles = gl.maximum(gl.cdiv(part_entries, ENTRIES), 1)
    if PARTIAL:
        out_row = (token * splits + split) * H + head
    else:
        out_row = token * H + head
    q_rows = q + token * q_token_stride + head.to(gl.int64) * q_head_stride
    part_slots = slots + token * slots_stride + begin

    query = gl.allocate_shared_memory(gl.bfloat16, [HEADS, C], OPERAND)
    query_rope = gl.allocate_shared_memory(gl.bfloat16, [HEADS, R], OPERAND)
    latents = gl.allocate_shared_memory(gl.bfloat16, [TILES, ENTRIES, C], OPERAND)
    ropes = gl.allocate_shared_memory(gl.bfloat16, [TILES, ENTRIES, R], OPERAND)
    limits = gl.allocate_shared_memory(gl.float32, [TILES, ENTRIES], VECTOR)
    shared_weights = gl.allocate_shared_memory(gl.bfloat16, [HEADS, ENTRIES], OPERAND)
    decays = gl.allocate_shared_memory(gl.float32, [HEADS], VECTOR)
    tile_full = gl.allocate_shared_memory(gl.int64, [TILES, 1], mbarrier.MBarrierLayout())
    tile_empty = gl.allocate_shared_memory(gl.int64, [TILES, 1], mbarrier.MBarrierLayout())
    weights_full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    weights_empty = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    for buffer in gl.static_range(TILES):
        mbarrier.init(tile_full.index(buffer), count=1)
        mbarrier.init(tile_empty.index(buffer), count=2)
    mbarrier.init(weights_full, count=1)
    mbarrier.init(weights_empty, count=1)

    # The first partition runs on the warps that were launched, the others on warps beside them.
    gl.warp_specialize(
        [
            (average_left, (
                q_rows, latents, ropes, limits, query, query_rope, shared_weights, decays,
                tile_full, tile_empty, weights_full, weights_empty,
                out, lse, out_row, q_head_stride, scale_log2, tiles, C, PARTIAL,
            )),
            (average_right, (
                latents, shared_weights, decays, tile_empty, weights_full, weights_empty,
                out, out_row, tiles, C,
            )),
            (gather_tiles, (
                cache, part_slots, latents, ropes, limits, tile_full, tile_empty,
                part_entries, tiles, C, R, ROW, GROUP,
            )),
        ],
        [4, 4],
        [RIGHT_REGISTERS, GATHER_REGISTERS],
    )  # fmt: skip


def missing() -> str | None:
    """Returns why the kernel cannot run in this process; None: it can."""
    if triton.knobs.runtime.interpret:
        return "Triton's interpreter does not run Gluon"
    return None


def check_gluon(q: Tensor, cache: Tensor, latent: int) -> None:
    """Raises ValueError unless the kernel serves these arguments, which others have checked.

    q [T, H, C + R] and cache as in `kernels.hopper.sparse_mla.sparse_mla`.
    """
    if reason := missing():
        raise ValueError(f"kernel is 'gluon'; {reason}")
    heads, rope = q.shape[1], q.shape[2] - latent
    if heads % HEADS.value:
        raise ValueError(f"kernel is 'gluon'; q's number of heads is {heads}; it serves 64 and 128")
    if (latent, rope) != (LATENT, ROPE):
        raise ValueError(
            f"kernel is 'gluon'; latent and rope width are {latent} and {rope}; "
            f"it serves {LATENT} and {ROPE}"
        )
    if cache.element_size() != 1:
        raise ValueError(f"kernel is 'gluon'; cache is {cache.dtype}; it serves fp8 rows, uint8")
    # Rows are read and queries copied 16 bytes at a time.
    for name, tensor in (("cache", cache), ("q", q)):
        steps = [stride * tensor.element_size() for stride in tensor.stride()[:-1]]
        if tensor.data_ptr() % 16 or any(step % 16 for step in steps):
            raise ValueError(
                f"kernel is 'gluon'; {name} starts at {tensor.data_ptr():#x} with strides of "
                f"{steps} bytes; all must be multiples of 16"
            )


def _specialisation(heads: int, *, partial: bool) -> Specialisation:
    integers = ("entries", "entries_per_split", "q_token_stride", "q_head_stride", "slots_stride")
    divided = {"splits": "i32"} if partial else {}
    undivided = {} if partial else {"splits": 1}
    return Specialisation(
        name=f"fp8 h{heads}{' partial' if partial else ''}",
        kernel=sparse_mla_gluon_kernel,
        signature={
            "q": "*bf16",
            "cache": "*u8",
            "slots": "*i32",
            "out": "*fp32" if partial else "*bf16",
            "lse": "*fp32",
            "scale_log2": "fp32",
            **dict.fromkeys(integers, "i32"),
            **divided,
        },
        constants={
            "H": heads,
            "C": LATENT,
            "R": ROPE,
            "ROW": 656,
            "GROUP": LATENT_GROUP,
            "PARTIAL": partial,
            **undivided,
        },
        aligned=("q", "cache", "slots", "out", "lse", *integers),
        warps=WARPS,
        stages=1,
        # At the launch, for 12 warps; a partition then takes more or gives some back.
        budget=Budget(168, SHARED_BYTES_PER_CTA, 1, "HGMMA"),
    )


SPECIALISATIONS = tuple(
    _specialisation(heads, partial=partial) for heads in (64, 128) for partial in (False, True)
)
