"""Identity of a page: the tokens in it and everything before them.

    key = H(parent key, 64 token ids)        root = H(boot secret, weight version, tenant, salt)

Two sequences share a page only if their keys are equal, so equal tokens, equal history, same
weights, and both allowed to see each other's prefixes.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from hashlib import blake2b

KEY_BYTES = 16


def root_key(boot_secret: bytes, weight_version: str, tenant: str, cache_salt: str) -> bytes:
    """Returns the parent of every first page of this tenant and salt."""
    digest = blake2b(digest_size=KEY_BYTES, key=boot_secret[:64])
    for part in (weight_version, tenant, cache_salt):
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(4, "little") + encoded)
    return digest.digest()


def extend_keys(
    keys: list[bytes], root: bytes, token_ids: Sequence[int], tokens: int, page_tokens: int
) -> None:
    """Appends the keys of the pages that follow `keys` and that the first `tokens` of `token_ids`
    fill completely; `token_ids` starts where `keys` ends."""
    pages = tokens // page_tokens
    if pages <= 0:
        return
    ids = memoryview(array("I", token_ids[: pages * page_tokens])).cast("B")
    width = page_tokens * array("I").itemsize
    key = keys[-1] if keys else root
    for start in range(0, pages * width, width):
        digest = blake2b(key, digest_size=KEY_BYTES)
        digest.update(ids[start : start + width])
        key = digest.digest()
        keys.append(key)


def prefix_keys(root: bytes, token_ids: Sequence[int], page_tokens: int) -> list[bytes]:
    """Returns the keys of the full pages of `token_ids`: once per request, off the step loop."""
    keys: list[bytes] = []
    extend_keys(keys, root, token_ids, len(token_ids), page_tokens)
    return keys


def shared_pages(keys: Sequence[bytes], others: Sequence[bytes]) -> int:
    """Returns how many leading pages two chains share, in O(log pages): equal keys have equal
    histories, so the chains agree up to one place and nowhere after it."""
    return bisect_left(range(min(len(keys), len(others))), 1, key=lambda i: keys[i] != others[i])
