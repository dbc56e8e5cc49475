"""Requests that share an uncached prefix wait for the one that computes it.

A running sequence that still computes known tokens leads: it is found by the identity of the next
page it will publish. Whoever waits and lacks just that page first shares everything up to it, so it
is parked until the leader has published the last page that both have. The wait ends by itself when
the leader ends, is preempted, or cannot publish.
"""

from __future__ import annotations

from scheduler.prefix import shared_pages
from scheduler.queue import WaitingQueue
from scheduler.request import Sequence


class PrefixLeaders:
    """Who computes which page next."""

    def __init__(self, waiting: WaitingQueue) -> None:
        self.waiting = waiting
        self._by_key: dict[bytes, Sequence] = {}
        self._key_of: dict[int, bytes] = {}
        """Arrival of a leader -> the identity it is found by."""

    def park(self, follower: Sequence, found_pages: int, limit_pages: int) -> bool:
        """Parks the head of the queue if somebody computes its next page; returns whether.

        Nobody waits for a leader of lower priority, which may itself have to wait.
        """
        if found_pages >= limit_pages or found_pages >= len(follower.keys):
            return False
        leader = self._by_key.get(follower.keys[found_pages])
        if leader is None or leader.priority > follower.priority:
            return False
        shared = min(shared_pages(leader.keys, follower.keys), limit_pages)
        self.waiting.park(follower, leader, shared)
        return True

    def advance(self, leader: Sequence) -> None:
        """Takes note of what a sequence has published, and of what it computes next."""
        self._unregister(leader)
        published = leader.published_pages
        if published < len(leader.keys):
            key = leader.keys[published]
            self._by_key[key] = leader
            self._key_of[leader.arrival] = key
            self.waiting.unpark(leader, published)
        else:
            self.waiting.unpark(leader)

    def retire(self, leader: Sequence) -> None:
        """The sequence leads no more: its followers go on by themselves. Others: no change."""
        self._unregister(leader)
        self.waiting.unpark(leader)

    def _unregister(self, leader: Sequence) -> None:
        key = self._key_of.pop(leader.arrival, None)
        if key is not None and self._by_key.get(key) is leader:
            del self._by_key[key]
