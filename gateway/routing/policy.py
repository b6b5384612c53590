"""How a replica is chosen: one method, a decision over a snapshot without IO.

A policy is a file beside this one and a line in `POLICIES` (`gateway/routing/__init__.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

from gateway.routing.snapshot import Replica, Snapshot, Target
from loraway.ids import ReplicaId


class RoutingPolicy(Protocol):
    """Chooses the replica that a request goes to."""

    def choose(
        self,
        snapshot: Snapshot,
        target: Target,
        in_flight: Mapping[ReplicaId, int],
        tried: Collection[ReplicaId] = (),
    ) -> Replica | None:
        """A replica that is ready and has the target's version loaded, or None where there is none.

        `in_flight` counts this worker's running requests; `tried` are replicas that have failed this request.
        """
        ...


def able_replicas(snapshot: Snapshot, target: Target, tried: Collection[ReplicaId] = ()) -> list[Replica]:
    """The replicas that can answer for the target now: no policy may choose another."""
    version_id = target.version_id
    return [
        replica
        for replica in snapshot.replicas.get(target.base_model, ())
        if replica.is_ready
        and (version_id is None or version_id in replica.loaded)
        and (not tried or replica.replica_id not in tried)
    ]


def load_of(replica: Replica, in_flight: Mapping[ReplicaId, int]) -> int:
    """How busy a replica is: our own requests, or what it says itself where other workers send more."""
    return max(in_flight.get(replica.replica_id, 0), replica.running + replica.waiting)
