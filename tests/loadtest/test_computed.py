from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from loadtest.computed import Computed
from loadtest.tokens import text_tokens, token_ids

PIECES = {0: 3, 1: 5, 2: 2, 3: 4}
"""Token id -> its length: equal ids are equal pieces, as in every source."""
TEXTS = st.lists(st.sampled_from(sorted(PIECES)), min_size=1, max_size=5, unique=True).map(
    lambda ids: tuple((token, PIECES[token]) for token in ids)
)


@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "b"]), TEXTS, st.integers(0, 14)), min_size=1, max_size=12
    )
)
def test_known_is_the_longest_prefix_ever_computed(
    asked: list[tuple[str, tuple[tuple[int, int], ...], int]],
) -> None:
    computed = Computed()
    prefixes: set[tuple[str, tuple[int, ...]]] = set()
    for tenant, runs, tokens in asked:
        ids = token_ids(runs)
        longest = max(
            n for n in range(len(ids) + 1) if not n or (tenant, tuple(ids[:n])) in prefixes
        )
        assert computed.known_tokens(tenant, runs) == longest
        tokens = min(tokens, text_tokens(runs))
        computed.add(tenant, runs, tokens)
        prefixes |= {(tenant, tuple(ids[:n])) for n in range(1, tokens + 1)}
