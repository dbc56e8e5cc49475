"""Chooses the replica for a request by what it was sent before and by how busy it is."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from deploy.ray.affinity import AffinityTable
from deploy.ray.messages import Wishes


class PrefixAffinityRouter(RequestRouter):  # type: ignore[misc] # Ray has an environment of its own
    """Routes a call that has Wishes among its arguments.

    It lives in the process that calls (each replica of the ingress has one) on one event loop, and
    counts the requests that it has sent itself; Ray's own counts, in which those of other callers
    are, win where they are higher.
    """

    def initialize_state(self, **bounds: int) -> None:
        """Called by Ray with `request_router_kwargs`: the bounds of an AffinityTable."""
        self._table = AffinityTable(**bounds)
        self._in_flight: Counter[str] = Counter()

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Returns the best replica and, behind it, all others: Ray takes the first with room."""
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        wishes = _wishes(pending_request)
        names = by_name.keys() - set(wishes.avoid) or by_name.keys()
        names = names & {wishes.only} or names
        order = self._table.rank(wishes.blocks, {name: self._load(by_name[name]) for name in names})
        best, others = order[:1], order[1:]
        return [[by_name[name] for name in rank] for rank in (best, others) if rank]

    def on_send_request(self, replica_id: ReplicaID) -> None:
        """Counts a request that was sent."""
        super().on_send_request(replica_id)
        self._in_flight[replica_id.unique_id] += 1

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Counts one that is over, however it ended."""
        super().on_request_completed(replica_id, internal_request_id)
        name = replica_id.unique_id
        self._in_flight[name] = max(0, self._in_flight[name] - 1)

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any
    ) -> None:
        """Remembers what a replica that has accepted a request was sent."""
        self._table.learn(_wishes(pending_request).blocks, replica_id.unique_id)

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """Forgets a replica that died."""
        super().on_replica_actor_died(replica_id)
        self._forget(replica_id.unique_id)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Takes over the set of replicas; forgets those that left it."""
        super().update_replicas(replicas)
        names = {replica.replica_id.unique_id for replica in replicas}
        self._table.keep(names)
        for name in self._in_flight.keys() - names:
            del self._in_flight[name]

    def _forget(self, name: str) -> None:
        self._table.forget(name)
        self._in_flight.pop(name, None)

    def _load(self, replica: RunningReplica) -> int:
        counted = self.replica_queue_len_cache.get(replica.replica_id) or 0
        return max(counted, self._in_flight[replica.replica_id.unique_id])


def _wishes(pending_request: PendingRequest | None) -> Wishes:
    """What a call says about where it should go; nothing, if it has no wishes."""
    arguments = pending_request.args if pending_request is not None else ()
    return next((each for each in arguments if isinstance(each, Wishes)), Wishes())
