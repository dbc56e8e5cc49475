from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from scheduler.prefix import KEY_BYTES, extend_keys, root_key

PAGE = 4
ROOT = root_key(b"secret", "v1", "tenant", "salt")
TOKENS = st.lists(st.integers(0, 2**32 - 1), max_size=30)


def keys_of(tokens: list[int], root: bytes = ROOT) -> list[bytes]:
    keys: list[bytes] = []
    extend_keys(keys, root, tokens, len(tokens), PAGE)
    return keys


@given(TOKENS, TOKENS)
def test_pages_are_equal_exactly_as_far_as_the_tokens_are(one: list[int], other: list[int]) -> None:
    shared_pages = 0
    for first in range(0, min(len(one), len(other)) - PAGE + 1, PAGE):
        if one[: first + PAGE] != other[: first + PAGE]:
            break
        shared_pages += 1
    ones, others = keys_of(one), keys_of(other)
    assert len(ones) == len(one) // PAGE
    assert ones[:shared_pages] == others[:shared_pages]
    assert not set(ones[shared_pages:]) & set(others[shared_pages:])


@given(TOKENS, st.lists(st.integers(0, 30), max_size=5))
def test_keys_grow_the_same_in_any_chunks(tokens: list[int], stops: list[int]) -> None:
    keys: list[bytes] = []
    for stop in (*sorted(stops), len(tokens)):
        start = len(keys) * PAGE
        extend_keys(keys, ROOT, tokens[start:], min(stop, len(tokens)) - start, PAGE)
    assert keys == keys_of(tokens)


def test_equal_pages_after_different_histories_differ() -> None:
    tail = [5, 6, 7, 8]
    assert keys_of([1, 2, 3, 4, *tail])[1] != keys_of([1, 2, 3, 9, *tail])[1]
    assert len(set(keys_of(tail * 5))) == 5


def test_the_root_tells_every_part_apart() -> None:
    parts = (b"secret", "v1", "tenant", "salt")
    others = [
        (b"other", "v1", "tenant", "salt"),
        (b"secret", "v2", "tenant", "salt"),
        (b"secret", "v1", "tenant2", "salt"),
        (b"secret", "v1", "tenant", ""),
        # The same characters, cut at another place.
        (b"secret", "v1", "tenants", "alt"),
        (b"secret", "v1t", "enant", "salt"),
    ]
    roots = {root_key(*each) for each in (parts, *others)}
    assert len(roots) == 1 + len(others)
    assert all(len(root) == KEY_BYTES for root in roots)
