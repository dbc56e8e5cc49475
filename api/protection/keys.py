"""The API keys of a file: read again when the file changes, compared in constant time.

sk-abc                                          # one key per line
sk-def requests=4 tokens_per_minute=60000       # with limits of its own
sk-ghi priority=10                              # whose requests run after those of the others
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path

import msgspec

from api.protection.priority import HIGHEST, LOWEST
from engine.client import ConfigError

logger = logging.getLogger("winnow.api")

TENANT_CHARACTERS = 16
"""Of a key's digest: enough to tell keys apart, of no use to guess them."""
LOOK_AGAIN_S = 1.0
"""A file is looked at no more often than this."""


class KeyLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one key may use at a time; None: no limit."""

    requests: int | None = None
    """Requests in flight."""
    tokens_per_minute: int | None = None
    """Prompt and answer together."""
    priority: int = 0
    """Of requests that name none, and the first that any may name; lower runs first."""

    def __post_init__(self) -> None:
        for name in ("requests", "tokens_per_minute"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if not LOWEST <= self.priority <= HIGHEST:
            raise ValueError(f"priority is {self.priority}; it must be in [{LOWEST}, {HIGHEST}]")


class Key(msgspec.Struct, frozen=True):
    digest: bytes
    tenant: str
    """Names the key in logs, queues and caches without telling it."""
    limits: KeyLimits


class KeyFile:
    """The keys of one file. A file that cannot be used keeps the keys read before.

    defaults: limits of keys that state none. Raises ConfigError for a file that is unusable from
    the start.
    """

    def __init__(
        self, file: str, defaults: KeyLimits, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path, self._defaults, self._clock = Path(file), defaults, clock
        self._stamp = _stamp(self._path)
        self._looked_s = clock()
        self._keys = read_keys(self._path, defaults)

    def find(self, key: str) -> Key | None:
        """Returns the key, None when it is not in the file.

        Every key is compared, in constant time: the answer's delay tells nothing.
        """
        self._look_again()
        digest = hashlib.sha256(key.encode()).digest()
        found = None
        for known in self._keys:
            if hmac.compare_digest(digest, known.digest):
                found = known
        return found

    def reload(self) -> None:
        """Reads the file again."""
        self._stamp = _stamp(self._path)
        try:
            self._keys = read_keys(self._path, self._defaults)
        except ConfigError as error:
            logger.error("the keys stay as they were: %s", error)
            return
        logger.info("%d API keys read", len(self._keys))

    def _look_again(self) -> None:
        now_s = self._clock()
        if now_s - self._looked_s < LOOK_AGAIN_S:
            return
        self._looked_s = now_s
        if _stamp(self._path) != self._stamp:
            self.reload()


def read_keys(path: Path, defaults: KeyLimits) -> list[Key]:
    """Returns the keys of a file. Raises ConfigError naming the line, never showing the key."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--api-key-file {path} cannot be read: {error}") from error
    keys = []
    for number, line in enumerate(lines, start=1):
        words = list(takewhile(lambda word: not word.startswith("#"), line.split()))
        if not words:
            continue
        digest = hashlib.sha256(words[0].encode()).digest()
        own = dict(word.partition("=")[::2] for word in words[1:])
        try:
            stated = msgspec.convert(own, KeyLimits, strict=False)
        except (msgspec.ValidationError, ValueError) as error:
            raise ConfigError(f"--api-key-file {path}, line {number}: {error}") from error
        changed = {name: getattr(stated, name) for name in own}
        limits = msgspec.structs.replace(defaults, **changed)
        keys.append(Key(digest, digest.hex()[:TENANT_CHARACTERS], limits))
    if not keys:
        raise ConfigError(f"--api-key-file {path} holds no key; write one per line")
    return keys


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes with the file: also when another one is moved into its place."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
