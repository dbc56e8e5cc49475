"""Identity of a page: the tokens in it and everything before them.

    key = H(parent key, 64 token ids)        root = H(boot secret, weight version, tenant, salt)

Two sequences share a page only if their keys are equal, so equal tokens, equal history, same
weights, and both allowed to see each other's prefixes.
"""

from __future__ import annotations

from array import array
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
    """Appends the keys of pages that `tokens` tokens fill completely and `keys` lacks."""
    for page in range(len(keys), tokens // page_tokens):
        parent = keys[-1] if keys else root
        ids = array("I", token_ids[page * page_tokens : (page + 1) * page_tokens])
        keys.append(blake2b(parent + ids.tobytes(), digest_size=KEY_BYTES).digest())
