# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Causal attention in MHA form over a ragged batch, dense or masked by a bit per position, sm_90.

For prefill whose rows all lie within top-k (nothing to select), and, with the selected positions
as a bitmask, up to the length where attending to all pairs in MHA form costs less than to the
selected ones in absorbed form. Keys come as they are kept: a part of each head, beside its values
in the product of kv_b, and one rotary part that all heads share; neither is copied.

Blocks of keys that every row of a block sees are taken without a comparison; only those at the
diagonal are masked. Blocks of rows with the most keys start first.

Source: DeepSeek-V2 report, eq. 37-47; FlashAttention-2 (Dao 2023) for the running softmax.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from kernels.hopper.arguments import check_tensor
from kernels.hopper.rounding import to_dtype
from kernels.hopper.selection_bitmask import WORD
from kernels.hopper.specialisation import Budget, Specialisation

DTYPES = (torch.bfloat16, torch.float16)
BLOCK_ROWS = 128
BLOCK_KEYS = 128
MASKED_BLOCK_KEYS = 64


@triton.jit(do_not_specialize=["selected_stride", "word_count"])
def dense_mha_kernel(
    q,
    k_nope,
    k_rope,
    v,
    v_values,
    selected,
    out,
    lse,
    query_starts,
    key_starts,
    scale_log2,
    q_token_stride,
    q_head_stride,
    k_head_stride,
    v_token_stride,
    v_head_stride,
    selected_stride,
    word_count,
    out_token_stride,
    out_head_stride,
    heads,
    NOPE: tl.constexpr,
    ROPE: tl.constexpr,
    VALUE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    MASKED: tl.constexpr,
    WORD: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """One program per (block of rows, head, sequence)."""
    head = tl.program_id(1)
    sequence = tl.program_id(2)
    query_begin = tl.load(query_starts + sequence)
    query_count = tl.load(query_starts + sequence + 1) - query_begin
    key_begin = tl.load(key_starts + sequence)
    key_count = tl.load(key_starts + sequence + 1) - key_begin
    block = tl.cdiv(query_count, BLOCK_ROWS) - 1 - tl.program_id(0)
    if block >= 0:
        row = block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        row_inside = row < query_count
        token = (query_begin + row).to(tl.int64)
        # The last query sees all keys, the one before it one less, and so on.
        before = key_count - query_count
        visible = tl.where(row_inside, before + row + 1, 0)
        q_row = q + token[:, None] * q_token_stride + head * q_head_stride
        q_nope = tl.load(
            q_row + tl.arange(0, NOPE)[None, :], mask=row_inside[:, None], other=0.0
        ).to(COMPUTE)
        q_rope = tl.load(
            q_row + NOPE + tl.arange(0, ROPE)[None, :], mask=row_inside[:, None], other=0.0
        ).to(COMPUTE)
        words = token
        if MASKED:
            words = selected + token * selected_stride
        total = tl.zeros([BLOCK_ROWS, VALUE], tl.float32)
        # Finite, so that a row that has seen no key yet does not subtract infinities.
        top = tl.full([BLOCK_ROWS], -1.0e30, tl.float32)
        mass = tl.zeros([BLOCK_ROWS], tl.float32)
        first_sees = before + block * BLOCK_ROWS + 1
        last_sees = before + tl.minimum((block + 1) * BLOCK_ROWS, query_count)
        whole = tl.maximum(first_sees, 0) // BLOCK_KEYS * BLOCK_KEYS
        offset = tl.arange(0, BLOCK_KEYS)
        column = tl.arange(0, VALUE)[None, :]
        for diagonal in tl.static_range(2):
            for first in tl.range(
                whole if diagonal else 0, last_sees if diagonal else whole, BLOCK_KEYS
            ):
                key = key_begin + first
                k_tile = k_nope.load([key, head * k_head_stride]).to(COMPUTE)
                k_rope_tile = k_rope.load([key, 0]).to(COMPUTE)
                scores = tl.dot(q_nope, k_tile.T)
                scores = tl.dot(q_rope, k_rope_tile.T, scores)
                if MASKED:
                    bits = tl.zeros([1, BLOCK_KEYS], tl.int32)
                    for word in tl.static_range(BLOCK_KEYS // WORD):
                        at = first // WORD + word
                        has_word = row_inside & (at < word_count)
                        chosen = tl.load(words + at, mask=has_word, other=0)
                        bits = tl.where((offset // WORD == word)[None, :], chosen[:, None], bits)
                    keep = ((bits >> (offset % WORD)[None, :]) & 1) != 0
                    scores = tl.where(keep, scores, -float("inf"))
                if diagonal:
                    keep = (first + offset)[None, :] < visible[:, None]
                    scores = tl.where(keep, scores, -float("inf"))
                next_top = tl.maximum(top, tl.max(scores, 1) * scale_log2)
                p = tl.exp2(scores * scale_log2 - next_top[:, None])
                shrink = tl.exp2(top - next_top)
                mass = mass * shrink + tl.sum(p, 1)
                if diagonal:
                    # Behind the sequence anything may stand, and 0 * NaN would be NaN.
                    v_row = v_values + (key + offset).to(tl.int64)[:, None] * v_token_stride
                    v_row += head * v_head_stride + column
                    v_tile = tl.load(v_row, mask=(first + offset < key_count)[:, None], other=0.0)
                else:
                    v_tile = v.load([key, head * v_head_stride])
                v_tile = v_tile.to(COMPUTE)
                total = tl.dot(to_dtype(p, COMPUTE), v_tile, total * shrink[:, None])
                top = next_top
        empty = mass == 0.0
        mass = tl.where(empty, 1.0, mass)
        to = out + token[:, None] * out_token_stride + head * out_head_stride + column
        tl.store(
            to, to_dtype(total / mass[:, None], out.dtype.element_ty), mask=row_inside[:, None]
        )
        natural = (top + tl.log2(mass)) * 0.6931471805599453
        tl.store(
            lse + token * heads + head,
            tl.where(empty, -float("inf"), natural),
            mask=row_inside,
        )


def dense_mha(
    q: Tensor,
    k_nope: Tensor,
    k_rope: Tensor,
    v: Tensor,
    query_starts: Tensor,
    key_starts: Tensor,
    scale: float,
    *,
    max_query_tokens: int,
    selected: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns (attention outputs [T, H, V] in q's dtype, log-sum-exp [T, H] float32, natural).

    q [T, H, N + R] bfloat16 or float16; k_nope [S, H, N], k_rope [S, R], v [S, H, V] of the same
    dtype: the keys of all sequences one behind the other, cached prefix included; last dimensions
    contiguous, other strides multiples of 8. Sequence b has queries query_starts[b] to
    query_starts[b + 1] and keys key_starts[b] to key_starts[b + 1] (int32 [B + 1], on the device);
    its queries are its last tokens, so query i of n sees all but its last n - 1 - i keys.
    max_query_tokens: no sequence has more queries; outputs are undefined where one has. scale > 0.
    N, R, V are powers of two from 16.

    selected [T, words] int32 (`selection_bitmask`): a query attends to position s of its sequence
    only where bit s % 32 of word s // 32 is set; positions without a word are not selected.

    A row without a key gives 0 and log-sum-exp -inf. A row's bits depend on its own sequence
    alone, and not on how that is cut into chunks: keys are taken in blocks from its first one.
    Raises ValueError for other arguments.
    """
    sizes = _check(q, k_nope, k_rope, v, query_starts, key_starts, scale, selected)
    tokens, heads, _, keys, nope, rope, value = sizes
    out = torch.empty(tokens, heads, value, dtype=q.dtype, device=q.device)
    lse = torch.empty(tokens, heads, dtype=torch.float32, device=q.device)
    if not tokens or not keys:
        return out.zero_(), lse.fill_(-torch.inf)
    if max_query_tokens < 1:
        raise ValueError(f"max_query_tokens is {max_query_tokens}; it must be positive")
    block_keys = BLOCK_KEYS if selected is None else MASKED_BLOCK_KEYS
    blocks = triton.cdiv(max_query_tokens, BLOCK_ROWS)
    dense_mha_kernel[(blocks, heads, query_starts.numel() - 1)](
        q,
        _heads_descriptor(k_nope, block_keys),
        TensorDescriptor(k_rope, [keys, rope], [k_rope.stride(0), 1], [block_keys, rope]),
        _heads_descriptor(v, block_keys),
        v,
        selected,
        out,
        lse,
        query_starts,
        key_starts,
        scale * math.log2(math.e),
        q.stride(0),
        q.stride(1),
        k_nope.stride(1),
        v.stride(0),
        v.stride(1),
        0 if selected is None else selected.stride(0),
        0 if selected is None else selected.shape[1],
        out.stride(0),
        out.stride(1),
        heads,
        NOPE=nope,
        ROPE=rope,
        VALUE=value,
        BLOCK_ROWS=BLOCK_ROWS,
        BLOCK_KEYS=block_keys,
        MASKED=selected is not None,
        WORD=WORD,
        COMPUTE=_compute_dtype(q.dtype),
        num_warps=8,
        num_stages=2,
    )
    return out, lse


def _compute_dtype(dtype: torch.dtype) -> tl.dtype:
    """What the products take: q's dtype, or float32 where the interpreter has no bfloat16."""
    if dtype == torch.float16:
        return tl.float16
    return tl.float32 if triton.knobs.runtime.interpret else tl.bfloat16


def _heads_descriptor(x: Tensor, block_keys: int) -> TensorDescriptor:
    """x [S, H, D] as a matrix whose row is a token with its heads side by side."""
    keys, heads, width = x.shape
    columns = (heads - 1) * x.stride(1) + width
    return TensorDescriptor(x, [keys, columns], [x.stride(0), 1], [block_keys, width])


def _check(
    q: Tensor,
    k_nope: Tensor,
    k_rope: Tensor,
    v: Tensor,
    query_starts: Tensor,
    key_starts: Tensor,
    scale: float,
    selected: Tensor | None,
) -> tuple[int, int, int, int, int, int, int]:
    check_tensor("q", q, (None, None, None), DTYPES)
    tokens, heads, width = q.shape
    check_tensor("k_nope", k_nope, (None, heads, None), (q.dtype,), like=q)
    keys, _, nope = k_nope.shape
    check_tensor("k_rope", k_rope, (keys, width - nope), (q.dtype,), like=q)
    check_tensor("v", v, (keys, heads, None), (q.dtype,), like=q)
    rope, value = width - nope, v.shape[2]
    for name, size in (("k_nope", nope), ("k_rope", rope), ("v", value)):
        if size < 16 or size & (size - 1):
            raise ValueError(f"{name} has width {size}; it must be a power of two from 16")
    for name, tensor in (("q", q), ("k_nope", k_nope), ("k_rope", k_rope), ("v", v)):
        if any(stride % 8 for stride in tensor.stride()[:-1]) or tensor.data_ptr() % 16:
            raise ValueError(
                f"{name} has strides {tensor.stride()} and address {tensor.data_ptr()}; strides "
                "must be multiples of 8 and the address of 16"
            )
    check_tensor("query_starts", query_starts, (None,), (torch.int32,), like=q)
    sequences = query_starts.numel()
    if sequences < 2:
        raise ValueError(f"query_starts has {sequences} entries; one sequence takes 2")
    check_tensor("key_starts", key_starts, (sequences,), (torch.int32,), like=q)
    if not 0.0 < scale < math.inf:
        raise ValueError(f"scale is {scale}; it must be positive and finite")
    if selected is not None:
        check_tensor("selected", selected, (tokens, None), (torch.int32,), like=q)
    return tokens, heads, width, keys, nope, rope, value


def _specialisation(masked: bool, budget: Budget) -> Specialisation:
    block_keys = MASKED_BLOCK_KEYS if masked else BLOCK_KEYS
    signature = {
        "q": "*bf16",
        "k_nope": f"tensordesc<bf16[{block_keys}, 128]>",
        "k_rope": f"tensordesc<bf16[{block_keys}, 64]>",
        "v": f"tensordesc<bf16[{block_keys}, 128]>",
        "v_values": "*bf16",
        "out": "*bf16",
        "lse": "*fp32",
        "query_starts": "*i32",
        "key_starts": "*i32",
        "scale_log2": "fp32",
        "q_token_stride": "i32",
        "q_head_stride": "i32",
        "k_head_stride": "i32",
        "v_token_stride": "i32",
        "v_head_stride": "i32",
        "selected_stride": "i32",
        "word_count": "i32",
        "out_token_stride": "i32",
        "out_head_stride": "i32",
        "heads": "i32",
    }
    constants: dict[str, object] = {
        "NOPE": 128,
        "ROPE": 64,
        "VALUE": 128,
        "BLOCK_ROWS": BLOCK_ROWS,
        "BLOCK_KEYS": block_keys,
        "MASKED": masked,
        "WORD": WORD,
        "COMPUTE": tl.bfloat16,
    }
    if masked:
        signature["selected"] = "*i32"
    else:
        constants["selected"] = None
    pointers = (name for name, kind in signature.items() if kind.startswith("*"))
    strides = (name for name in signature if name.endswith("_stride") and name[0] != "s")
    return Specialisation(
        name="masked, 192 and 128 wide" if masked else "dense, 192 and 128 wide",
        kernel=dense_mha_kernel,
        signature=signature,
        constants=constants,
        aligned=(*pointers, *strides),
        warps=8,
        stages=2,
        budget=budget,
    )


SPECIALISATIONS: tuple[Specialisation, ...] = (
    _specialisation(False, Budget(255, 220_000, 1, "HGMMA")),
    _specialisation(True, Budget(255, 220_000, 1, "HGMMA")),
)
