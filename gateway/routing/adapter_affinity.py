"""The default: an adapter's requests go where its version is loaded, the base's to the least busy."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from gateway.routing.policy import able_replicas, load_of
from gateway.routing.snapshot import Replica, Snapshot, Target
from loraway.ids import ReplicaId


class AdapterAffinity:
    """For an adapter the fewest requests in flight among its replicas; for the base the least load."""

    def choose(
        self,
        snapshot: Snapshot,
        target: Target,
        in_flight: Mapping[ReplicaId, int],
        tried: Collection[ReplicaId] = (),
    ) -> Replica | None:
        able = able_replicas(snapshot, target, tried)
        if len(able) < 2:
            return able[0] if able else None
        if target.version_id is not None:
            return min(able, key=lambda replica: in_flight.get(replica.replica_id, 0))
        return min(able, key=lambda replica: load_of(replica, in_flight))
