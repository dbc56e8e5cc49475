"""The beginning of a request's conversation, in blocks that tell whether two requests share it.

Nothing is rendered or tokenised here: the replica does that. Two requests share a prefix in the
cache only if they come from the same sender and say the same, and that can be seen from the body.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from itertools import islice
from typing import Any

from deploy.ray.affinity import Block

BLOCK_BYTES = 1024
"""The most of a message that one block stands for. A message's end ends a block, too."""
MOST_BLOCKS = 16_384
"""Of a conversation; what comes behind them says nothing new about where it belongs."""
KEY_BYTES = 16
FIRST_FIELDS = ("tools", "functions", "system", "instructions")
"""What the prompt begins with, whichever dialect says it."""
TURN_FIELDS = ("messages", "input", "prompt")
LOST_FIELDS = frozenset({"reasoning", "reasoning_content", "reasoning_details", "cache_control"})
"""What clients change about messages that they send again: reasoning is dropped by many, and by the
rule of retention, and marks of a cache wander on with the conversation."""
LOST_TYPES = frozenset({"thinking", "redacted_thinking", "reasoning"})


def blocks_of(
    headers: Mapping[str, str], body: bytes, block_bytes: int = BLOCK_BYTES
) -> list[Block]:
    """Returns the conversation's blocks, the beginning first; none if the body is no JSON object.

    headers: names in lower case. Requests of different keys, users, salts or models share no block.
    """
    try:
        request = json.loads(body)
        if not isinstance(request, dict):
            return []
        key = blake2b(_canonical(_identity(headers, request)), digest_size=KEY_BYTES).digest()
        return list(islice(_chain(key, request, block_bytes), MOST_BLOCKS))
    except (ValueError, RecursionError):
        return []


def _identity(headers: Mapping[str, str], request: dict[str, Any]) -> list[Any]:
    """Whose cache it is."""
    metadata = request.get("metadata")
    return [
        headers.get("authorization") or headers.get("x-api-key"),
        request.get("user_id"),
        metadata.get("user_id") if isinstance(metadata, dict) else None,
        request.get("cache_salt"),
        request.get("model"),
    ]


def _chain(key: bytes, request: dict[str, Any], block_bytes: int) -> Iterator[Block]:
    for message in _messages(request):
        for start in range(0, len(message), block_bytes):
            piece = message[start : start + block_bytes]
            key = blake2b(piece, digest_size=KEY_BYTES, key=key).digest()
            yield Block(key, len(piece))


def _messages(request: dict[str, Any]) -> Iterator[bytes]:
    """The conversation as bytes, one message at a time."""
    for name in FIRST_FIELDS:
        if request.get(name):
            yield _canonical(request[name])
    for name in TURN_FIELDS:
        turns = request.get(name)
        if isinstance(turns, str):
            yield turns.encode(errors="surrogatepass")
        elif isinstance(turns, list):
            if turns and all(isinstance(turn, int) for turn in turns):
                yield _canonical(turns)  # tokens
            else:
                yield from (_canonical(turn) for turn in turns if not _lost(turn))


def _canonical(value: Any) -> bytes:
    """Writes what stays of a value when a client sends it again; equal values, equal bytes."""
    return json.dumps(_kept(value), sort_keys=True, separators=(",", ":")).encode()


def _kept(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _kept(field) for name, field in value.items() if name not in LOST_FIELDS}
    if isinstance(value, list):
        return [_kept(item) for item in value if not _lost(item)]
    return value


def _lost(item: Any) -> bool:
    return isinstance(item, dict) and item.get("type") in LOST_TYPES
