"""Every request goes to the least busy replica that can answer it."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from gateway.routing.policy import able_replicas, load_of
from gateway.routing.snapshot import Replica, Snapshot, Target
from loraway.ids import ReplicaId


class LeastLoad:
    """Our own requests in flight or the engine's running and waiting ones, whichever is more."""

    def choose(
        self,
        snapshot: Snapshot,
        target: Target,
        in_flight: Mapping[ReplicaId, int],
        tried: Collection[ReplicaId] = (),
    ) -> Replica | None:
        able = able_replicas(snapshot, target, tried)
        return min(able, key=lambda replica: load_of(replica, in_flight), default=None)
