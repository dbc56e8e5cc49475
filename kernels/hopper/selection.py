# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""The interval of scores that holds a row's k-th largest, found by counting; storing what is in it.

Scores are compared as integers in the order of floats: -0 equals 0, and -inf and NaN, which are
never chosen, lie below all others. An interval of such keys shrinks around the k-th: each round
counts how many keys reach two thresholds inside it. Where exactly as many as wanted reach one, the
search ends early; where only equal keys are left, it ends there.
"""

from __future__ import annotations

import triton
import triton.language as tl

NO_KEY = tl.constexpr(-(2**31))
"""The key of -inf and NaN."""
LOWEST_KEY = tl.constexpr(-(2**31) + 2**23)
"""Below it lies no valid score's key: the next above -inf's place in the order."""
PAST_KEY = tl.constexpr(0x7F800001)
"""Above every score's key: the next after +inf's."""


@triton.jit
def row_keys(row, positions, n, VECTOR: tl.constexpr):
    """Returns int32 keys that compare as a row's float32 scores at positions do.

    NO_KEY for -inf and NaN, and from position n on. Memory is readable up to a multiple of
    VECTOR, so that a whole vector is loaded or nothing of it.
    """
    readable = (n + VECTOR - 1) // VECTOR * VECTOR
    scores = tl.load(row + positions, mask=positions < readable, other=float("-inf"))
    bits = tl.where(scores == 0.0, 0.0, scores).to(tl.int32, bitcast=True)
    keys = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return tl.where((scores > float("-inf")) & (positions < n), keys, NO_KEY)


@triton.jit
def thresholds(low, high):
    """Returns two keys that divide low .. high (int64, at least 2 apart) in thirds."""
    span = high - low
    return low + tl.maximum(span * 11 >> 5, 1), low + tl.maximum(span * 21 >> 5, 1)


@triton.jit
def narrower(low, high, reach_low, reach_high, a, b, reach_a, reach_b, least):
    """Returns the part of low .. high that holds the last key which `least` keys reach."""
    if reach_b >= least:
        low, reach_low = b, reach_b
    else:
        if reach_a >= least:
            low, reach_low = a, reach_a
            high, reach_high = b, reach_b
        else:
            high, reach_high = a, reach_a
    return low, high, reach_low, reach_high


@triton.jit
def narrowed(keys, floor, least, most):
    """Returns (low, high, reach_high): keys >= low are at least `least` and, unless many are equal
    to low, at most `most`; keys >= high, reach_high in number, are fewer than `least`.

    Only keys >= floor count. If they are fewer than `least`, all are >= low.
    """
    counted = keys >= floor.to(tl.int32)
    high = tl.maximum(tl.max(keys, axis=0).to(tl.int64) + 1, floor)
    low = tl.minimum(tl.min(tl.where(counted, keys, PAST_KEY), axis=0).to(tl.int64), high)
    reach_low = tl.sum(counted.to(tl.int32), axis=0)
    reach_high = reach_low * 0
    while (reach_low > most) & (high - low > 1):
        a, b = thresholds(low, high)
        # Both counts in one sum; a tile has fewer than 2^15 keys.
        reaches = (keys >= a.to(tl.int32)).to(tl.int32) + tl.where(keys >= b.to(tl.int32), 65536, 0)
        both = tl.sum(reaches, axis=0)
        low, high, reach_low, reach_high = narrower(
            low, high, reach_low, reach_high, a, b, both & 65535, both >> 16, least
        )
    return low, high, reach_high


@triton.jit
def narrowed_by_reading(row, n, guess, reached, least, BLOCK: tl.constexpr, VECTOR: tl.constexpr):
    """Returns what `narrowed` does, for `most` equal to `least`, of a whole row of n scores.

    `reached` of its keys are >= guess.
    """
    offset = tl.arange(0, BLOCK)
    smallest, largest = offset * 0 + PAST_KEY, offset * 0 + NO_KEY
    for at in tl.range(0, n, BLOCK, num_stages=3):
        keys = row_keys(row, at + offset, n, VECTOR)
        smallest = tl.minimum(smallest, tl.where(keys == NO_KEY, PAST_KEY, keys))
        largest = tl.maximum(largest, keys)
    low = tl.min(smallest, axis=0).to(tl.int64)
    if reached >= least:
        low, reach_low = tl.maximum(low, guess), reached
        high, reach_high = tl.max(largest, axis=0).to(tl.int64) + 1, n * 0
    else:
        low, reach_low = tl.minimum(low, guess), n
        high, reach_high = guess, reached
    while (reach_low > least) & (high - low > 1):
        a, b = thresholds(low, high)
        key_a, key_b = a.to(tl.int32), b.to(tl.int32)
        reach_a, reach_b = offset * 0, offset * 0
        for at in tl.range(0, n, BLOCK, num_stages=3):
            keys = row_keys(row, at + offset, n, VECTOR)
            reach_a += (keys >= key_a).to(tl.int32)
            reach_b += (keys >= key_b).to(tl.int32)
        low, high, reach_low, reach_high = narrower(
            low, high, reach_low, reach_high, a, b,
            tl.sum(reach_a, axis=0), tl.sum(reach_b, axis=0), least,
        )  # fmt: skip
    return low, high, reach_high


@triton.jit
def sampled_threshold(row, n, TARGET: tl.constexpr, BLOCK: tl.constexpr, RUN: tl.constexpr):
    """Returns a key (int64) that about TARGET of the row's n > 2 * BLOCK keys reach."""
    i = tl.arange(0, BLOCK)
    start = (i // RUN) * (n - RUN) // (BLOCK // RUN) // RUN * RUN
    keys = row_keys(row, start + i % RUN, n, RUN)
    rank = tl.maximum(TARGET * BLOCK // n, 1)
    floor = n.to(tl.int64) * 0 + LOWEST_KEY
    threshold, _, _ = narrowed(keys, floor, rank, rank + rank // 4)
    return threshold


@triton.jit
def store_chosen(
    row,
    kept,
    kept_keys,
    count,
    low,
    high,
    reach_high,
    out,
    table,
    K: tl.constexpr,
    K_POW2: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """Stores the positions, or slots if PAGE > 0, of the keys >= high and of the first others
    >= low, K in all if there are as many; then -1.

    Looks at the `count` positions and keys in `kept` and `kept_keys`, positions ascending, or, if
    those are None, at the row's first scores.
    """
    high_key, low_key = high.to(tl.int32), low.to(tl.int32)
    room = K - reach_high
    above, level = count * 0, count * 0
    for at in tl.range(0, count, BLOCK, num_stages=1):
        i = at + tl.arange(0, BLOCK)
        if kept is None:
            positions = i
            keys = row_keys(row, i, count, VECTOR)
        else:
            positions = tl.load(kept + i, mask=i < count, other=0)
            keys = tl.load(kept_keys + i, mask=i < count, other=NO_KEY)
        is_above = keys >= high_key
        is_level = (keys >= low_key) & (keys < high_key)
        kinds = is_above.to(tl.int32) + tl.where(is_level, 65536, 0)
        running = tl.cumsum(kinds, axis=0)
        level_rank = level + (running >> 16)
        rank = above + (running & 65535) + tl.minimum(level_rank, room) - 1
        chosen = is_above | (is_level & (level_rank <= room))
        if PAGE > 0:
            page = tl.load(table + positions // PAGE, mask=chosen, other=0)
            positions = page * PAGE + positions % PAGE
        tl.store(out + rank, positions, mask=chosen)
        total = tl.sum(kinds, axis=0)
        above += total & 65535
        level += total >> 16
    rank = tl.arange(0, K_POW2)
    chosen_count = above + tl.minimum(level, room)
    nothing = tl.full([K_POW2], -1, tl.int32)
    tl.store(out + rank, nothing, mask=(rank >= chosen_count) & (rank < K))
