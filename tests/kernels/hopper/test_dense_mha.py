"""Against float64 on the same float16 values; the interpreter has no bfloat16 products.

Scores and sums are float32. The weights of the softmax are rounded to float16 before they meet the
values, and so is the output: 2^-11 each of at most the largest value, hence 2^-10 of it. Largest
differences are a third of that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.attention import attention_reference
from kernels.hopper.dense_mha import dense_mha
from kernels.hopper.selection_bitmask import WORD, selection_bitmask

HEADS, NOPE, ROPE, VALUE = 2, 32, 16, 16
SCALE = (NOPE + ROPE) ** -0.55
"""A value that no default equals."""


@dataclass(frozen=True)
class Batch:
    """Sequences of (queries, keys), packed; what lies behind the last key is NaN."""

    q: Tensor
    k_nope: Tensor
    k_rope: Tensor
    v: Tensor
    sequences: list[tuple[int, int]]

    def starts(self, which: int, device: torch.device) -> Tensor:
        counts = torch.tensor([0] + [sequence[which] for sequence in self.sequences])
        return counts.cumsum(0).int().to(device)


def batch_of(sequences: list[tuple[int, int]], device: torch.device, *, spare: int = 40) -> Batch:
    """Keys and values are parts of one buffer [S, H, N + V], as kv_b gives them."""
    generator = torch.Generator().manual_seed(len(sequences))
    tokens, keys = (sum(sequence[i] for sequence in sequences) for i in (0, 1))

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).half().to(device)

    kv, k_rope = draw(keys + spare, HEADS, NOPE + VALUE), draw(keys + spare, ROPE)
    kv[keys:], k_rope[keys:] = torch.nan, torch.nan
    q = draw(tokens, HEADS, NOPE + ROPE)
    return Batch(q, kv[..., :NOPE], k_rope, kv[..., NOPE:], sequences)


def attend(batch: Batch, **changed: Any) -> tuple[Tensor, Tensor]:
    device = batch.q.device
    arguments: dict[str, Any] = {
        "q": batch.q,
        "k_nope": batch.k_nope,
        "k_rope": batch.k_rope,
        "v": batch.v,
        "query_starts": batch.starts(0, device),
        "key_starts": batch.starts(1, device),
        "scale": SCALE,
        "max_query_tokens": max([1, *(queries for queries, _ in batch.sequences)]),
    }
    out, lse = dense_mha(**arguments | changed)
    return out.cpu().double(), lse.cpu().double()


def expected(batch: Batch, chosen: list[list[int]] | None = None) -> tuple[Tensor, Tensor]:
    """chosen: per query its positions, of which those it sees count; all of them by default."""
    outs, lses, token, begin = [], [], 0, 0
    for queries, keys in batch.sequences:
        q = batch.q[token : token + queries].cpu().double()
        k_rope = batch.k_rope[begin : begin + keys].cpu().double()
        k_nope = batch.k_nope[begin : begin + keys].cpu().double()
        k = torch.cat((k_nope, k_rope[:, None].expand(-1, HEADS, -1)), -1)
        v = batch.v[begin : begin + keys].cpu().double()
        sees = [list(range(keys - queries + 1 + i)) for i in range(queries)]
        if chosen is not None:
            sees = [
                sorted(set(chosen[token + i]) & set(positions)) for i, positions in enumerate(sees)
            ]
        outs.append(attention_reference(q, k, v, sees, SCALE))
        scores = torch.einsum("thd,shd->ths", q, k) * SCALE
        mask = torch.full((queries, 1, keys), -math.inf, dtype=torch.float64)
        for i, positions in enumerate(sees):
            mask[i, 0, positions] = 0.0
        lses.append((scores + mask).logsumexp(-1))
        token, begin = token + queries, begin + keys
    return torch.cat(outs), torch.cat(lses)


def close(found: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> None:
    assert torch.allclose(found[0], wanted[0], rtol=0, atol=4 * 2**-10)
    assert torch.allclose(found[1], wanted[1], rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(
    "sequences",
    [
        [(1, 1)],
        [(127, 127)],
        [(129, 129)],
        [(5, 130), (1, 128), (3, 3)],  # cached prefixes, and keys up to a block's end
        [(2, 300), (0, 0), (0, 4), (130, 261)],
    ],
)
def test_ragged_sequences_match_float64(
    sequences: list[tuple[int, int]], device: torch.device
) -> None:
    batch = batch_of(sequences, device)
    close(attend(batch), expected(batch))


def test_keys_of_other_sequences_and_behind_the_last_are_never_seen(device: torch.device) -> None:
    batch = batch_of([(3, 7), (4, 9), (2, 2)], device)
    wanted = expected(batch)
    for tensor in (batch.k_nope, batch.k_rope, batch.v):
        tensor[7:16] = torch.nan
    found = attend(batch)
    rows = [0, 1, 2, 7, 8]
    close((found[0][rows], found[1][rows]), (wanted[0][rows], wanted[1][rows]))


def test_a_query_without_keys_gives_zero(device: torch.device) -> None:
    """Fewer keys than queries: the first queries see none. And no key at all."""
    batch = batch_of([(4, 2)], device)
    out, lse = attend(batch)
    assert torch.equal(out[:2], torch.zeros_like(out[:2]))
    assert bool((lse[:2] == -torch.inf).all())
    tail = replace(batch, q=batch.q[2:], sequences=[(2, 2)])
    close((out[2:], lse[2:]), expected(tail))
    out, lse = attend(batch_of([(3, 0)], device, spare=0))
    assert torch.equal(out, torch.zeros_like(out)) and bool((lse == -torch.inf).all())


def test_large_scores_do_not_overflow(device: torch.device) -> None:
    batch = batch_of([(4, 6)], device)
    batch.q.mul_(100)
    out, lse = attend(batch)
    wanted = expected(batch)
    assert torch.allclose(out, wanted[0], rtol=0, atol=4 * 2**-10)
    assert torch.allclose(lse, wanted[1], rtol=1e-6, atol=0)


@pytest.mark.parametrize("sequences", [[(5, 70)], [(3, 130), (66, 66)]])
def test_selected_positions_match_float64(
    sequences: list[tuple[int, int]], device: torch.device
) -> None:
    """-1 anywhere in a list, positions that are not visible, words whose sign bit is set, and a
    row with none."""
    batch = batch_of(sequences, device)
    generator = torch.Generator().manual_seed(3)
    longest = max(keys for _, keys in sequences)
    positions = torch.randint(-3, longest, (len(batch.q), 20), generator=generator).int()
    positions[0], positions[1, ::2] = -1, 31
    selected = selection_bitmask(positions.to(device), longest)
    found = attend(batch, selected=selected)
    close(found, expected(batch, [[p for p in row if p >= 0] for row in positions.tolist()]))
    assert torch.equal(found[0][0], torch.zeros_like(found[0][0]))


def test_positions_without_a_word_are_not_selected(device: torch.device) -> None:
    """Words for 32 positions of 70: the next row's begin right behind them."""
    batch = batch_of([(3, 70)], device)
    words = torch.full((3, 1), -1, dtype=torch.int32, device=device)
    close(attend(batch, selected=words), expected(batch, [list(range(32))] * 3))


def test_selecting_everything_is_dense(device: torch.device) -> None:
    batch = batch_of([(66, 70)], device)
    everything = torch.arange(70, dtype=torch.int32).expand(66, 70).contiguous().to(device)
    dense = attend(batch)
    close(attend(batch, selected=selection_bitmask(everything, 70)), dense)


@pytest.mark.parametrize("length", [1, 32, 33, 64, 100])
def test_the_bitmask_holds_exactly_the_positions(length: int, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(length)
    wide = torch.randint(-2, length + 3, (3, 1100), generator=generator).int()
    positions = wide[:, 7:1060]  # strided rows, more than one block of them
    positions[1] = torch.tensor([2**31 - 1, -(2**31), -123456] * 351)
    bitmask = selection_bitmask(positions.to(device), length).cpu()
    assert bitmask.shape[1] * WORD >= length and bitmask.shape[1] % 2 == 0
    for row, words in zip(positions.tolist(), bitmask.tolist(), strict=True):
        bits = {WORD * i + bit for i, word in enumerate(words) for bit in range(WORD)
                if word >> bit & 1}  # fmt: skip
        assert bits == {p for p in row if 0 <= p < length}


def test_a_sequence_is_attended_alike_in_any_batch(device: torch.device) -> None:
    together = batch_of([(5, 130), (9, 20), (2, 3)], device)
    alone = replace(
        together,
        q=together.q[5:14],
        k_nope=together.k_nope[130:150],
        k_rope=together.k_rope[130:150],
        v=together.v[130:150],
        sequences=[(9, 20)],
    )
    assert torch.equal(attend(together)[0][5:14], attend(alone)[0])
    assert torch.equal(attend(together)[1], attend(together)[1])


def test_a_prompt_in_chunks_is_attended_as_at_once(device: torch.device) -> None:
    """Bit for bit: blocks of keys begin where the sequence does, not where a chunk does."""
    whole = batch_of([(150, 150)], device)
    first = replace(whole, q=whole.q[:70], sequences=[(70, 70)])
    second = replace(whole, q=whole.q[70:], sequences=[(80, 150)])
    for result, parts in zip(
        attend(whole), zip(attend(first), attend(second), strict=True), strict=True
    ):
        assert torch.equal(result, torch.cat(parts))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"q": torch.zeros(5, HEADS, 48)}, "q is float32; must be bfloat16 or float16"),
        ({"k_nope": torch.zeros(9, 3, NOPE).half()}, r"k_nope has shape \[9, 3, 32\]"),
        ({"k_rope": torch.zeros(47, 8).half()}, r"k_rope has shape \[47, 8\]"),
        ({"v": torch.zeros(47, HEADS, 24).half()}, "v has width 24; it must be a power of two"),
        ({"v": torch.zeros(47, HEADS, 21).half()[..., :16]}, "strides must be multiples of 8"),
        ({"query_starts": torch.tensor([0, 5])}, "query_starts is int64; must be int32"),
        ({"key_starts": torch.tensor([0], dtype=torch.int32)}, r"it must be \[2\]"),
        ({"query_starts": torch.tensor([0], dtype=torch.int32)}, "has 1 entries"),
        ({"scale": 0.0}, "scale is 0.0; it must be positive"),
        ({"selected": torch.zeros(4, 2, dtype=torch.int32)}, r"selected has shape \[4, 2\]"),
        ({"max_query_tokens": 0}, "max_query_tokens is 0"),
    ],
)
def test_unsupported_arguments_are_named(
    changed: dict[str, Any], message: str, device: torch.device
) -> None:
    batch = batch_of([(5, 7)], device)
    moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in changed.items()}
    with pytest.raises(ValueError, match=message):
        attend(batch, **moved)


def test_a_bitmask_of_nothing_is_named(device: torch.device) -> None:
    with pytest.raises(ValueError, match="length is 0"):
        selection_bitmask(torch.zeros(1, 1, dtype=torch.int32, device=device), 0)
