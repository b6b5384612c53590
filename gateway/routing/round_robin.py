"""The replicas that can answer take turns."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from gateway.routing.policy import able_replicas
from gateway.routing.snapshot import Replica, Snapshot, Target
from loraway.ids import ReplicaId


class RoundRobin:
    """Owns whose turn it is, by target name."""

    def __init__(self) -> None:
        self._turns: dict[str, int] = {}

    def choose(
        self,
        snapshot: Snapshot,
        target: Target,
        in_flight: Mapping[ReplicaId, int],
        tried: Collection[ReplicaId] = (),
    ) -> Replica | None:
        able = able_replicas(snapshot, target, tried)
        if not able:
            return None
        turn = self._turns.get(target.name, 0)
        self._turns[target.name] = turn + 1
        return able[turn % len(able)]
