"""Which replica has seen the beginning of a conversation: what prefix-affine routing decides by.

A prompt finds in a replica's cache what that replica has computed before, so a conversation should
go back to where it was. What a replica really holds is known to it alone; here it is only
remembered what was sent there, and a wrong guess costs a prefill, never an answer.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple


class Block(NamedTuple):
    """A piece of a conversation's beginning."""

    key: bytes
    """Names the piece together with everything before it."""
    size_bytes: int


class AffinityTable:
    """Remembers which replicas were sent which blocks, the least recently sent go first.

    capacity_blocks: how many are remembered. least_prefix_bytes: a common beginning shorter than
    this is not worth a queue. imbalance_requests: how many more requests than the least loaded
    replica one may have and still be preferred for what it has seen. Raises ValueError for a bound
    that is not positive; the imbalance may be 0.

    Whoever remembers a block remembers all blocks before it, and so does each replica: a block is
    never forgotten before those that follow it.
    """

    def __init__(
        self,
        capacity_blocks: int = 262_144,
        least_prefix_bytes: int = 256,
        imbalance_requests: int = 8,
    ) -> None:
        for name, bound, least in (
            ("capacity_blocks", capacity_blocks, 1),
            ("least_prefix_bytes", least_prefix_bytes, 1),
            ("imbalance_requests", imbalance_requests, 0),
        ):
            if bound < least:
                raise ValueError(f"{name} is {bound}; it must be at least {least}")
        self._capacity_blocks = capacity_blocks
        self._least_prefix_bytes = least_prefix_bytes
        self._imbalance_requests = imbalance_requests
        self._replicas: OrderedDict[bytes, frozenset[str]] = OrderedDict()
        self._held: Counter[str] = Counter()

    def __len__(self) -> int:
        """The blocks remembered."""
        return len(self._replicas)

    def held_blocks(self, replica: str) -> int:
        """Returns how many blocks the replica was sent, of those remembered."""
        return self._held[replica]

    def learn(self, blocks: Sequence[Block], replica: str) -> None:
        """Remembers that the replica was sent these blocks, the beginning first."""
        for block in reversed(blocks[: self._capacity_blocks]):
            known = self._replicas.get(block.key, frozenset())
            if replica not in known:
                self._held[replica] += 1
                self._replicas[block.key] = known | {replica}
            self._replicas.move_to_end(block.key)
        while len(self._replicas) > self._capacity_blocks:
            _, forgotten = self._replicas.popitem(last=False)
            self._held.subtract(forgotten)

    def keep(self, replicas: Iterable[str]) -> None:
        """Forgets every replica but these."""
        for replica in set(+self._held) - set(replicas):
            self.forget(replica)

    def forget(self, replica: str) -> None:
        """Forgets a replica: its cache is gone with it."""
        if not self._held.pop(replica, 0):
            return
        for key, known in list(self._replicas.items()):
            if known == {replica}:
                del self._replicas[key]
            elif replica in known:
                self._replicas[key] = known - {replica}

    def longest(self, blocks: Sequence[Block], replicas: Iterable[str]) -> tuple[int, set[str]]:
        """Returns the bytes of the longest beginning that any of `replicas` was sent, and those
        that were; (0, none of them) where none was."""
        size_bytes, knowing = 0, set[str]()
        candidates = set(replicas)
        for block in blocks:
            still = candidates & self._replicas.get(block.key, frozenset())
            if not still:
                break
            size_bytes, knowing = size_bytes + block.size_bytes, still
            candidates = still
        return size_bytes, knowing

    def rank(self, blocks: Sequence[Block], loads: Mapping[str, int]) -> list[str]:
        """Returns all replicas of `loads` (name -> requests in flight), the best one first.

        The best is the least loaded of those that were sent the longest common beginning, unless it
        is too busy or the beginning too short; then, and behind it, the least loaded come first,
        and of two of them the one that holds less.
        """
        by_load = sorted(loads, key=lambda name: (loads[name], self._held[name], name))
        if not by_load:
            return []
        size_bytes, knowing = self.longest(blocks, loads)
        if size_bytes < self._least_prefix_bytes:
            return by_load
        favoured = next(name for name in by_load if name in knowing)
        if loads[favoured] - loads[by_load[0]] > self._imbalance_requests:
            return by_load
        return [favoured, *(name for name in by_load if name != favoured)]
