"""What to load and unload on a replica, and on which replica: pure decisions over snapshots.

Engines evict silently past their limits, so a plan never fills more than a replica's slots. A version is
unloaded only for one that matters more, or for one as important that a request asks for now.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

from loraway.ids import ReplicaId, VersionId


class Importance(IntEnum):
    """How much a version is wanted."""

    #: No version of ours any more: unloaded whenever it is seen.
    RETIRED = 0
    #: Can be asked for by its own name only; loaded when asked.
    BY_NAME = 1
    #: Where an alias's rollback goes.
    PREVIOUS = 2
    #: An alias points at it.
    TARGET = 3


@dataclass(frozen=True, slots=True)
class Loaded:
    """An adapter that a replica holds."""

    engine_name: str
    importance: Importance = Importance.BY_NAME
    #: When a request last asked for it, as far as is known; seconds since the epoch.
    used_at: float = 0.0
    #: Not to be unloaded: somebody else's, in a rollout under way, or being unloaded already.
    is_held: bool = False


@dataclass(frozen=True, slots=True)
class Wanted:
    """A version that should be loaded."""

    engine_name: str
    importance: Importance


@dataclass(frozen=True, slots=True)
class Plan:
    """First unload, then load, in this order."""

    unload: tuple[str, ...] = ()
    load: tuple[str, ...] = ()


def plan_convergence(wanted: Iterable[Wanted], loaded: Iterable[Loaded], slots: int, spare: int = 0) -> Plan:
    """Bring a replica closer to what is wanted, most important first.

    Loads what fits, unloading only less important versions, least recently used first. With `spare` it
    keeps so many slots free, as far as versions that are only wanted by name fill them.
    """
    ranked = sorted(wanted, key=lambda version: -version.importance)  # stable: the given order holds
    unload = [item for item in loaded if item.importance == Importance.RETIRED and not item.is_held]
    kept = [item for item in loaded if item not in unload]
    load: list[Wanted] = []
    present = {item.engine_name for item in kept}
    for version in ranked:
        if version.engine_name in present:
            continue
        if len(kept) + len(load) >= slots:
            victim = _least_needed(kept, below=version.importance)
            if victim is None:
                break
            kept.remove(victim)
            unload.append(victim)
        load.append(version)
        present.add(version.engine_name)
    while len(kept) + len(load) > slots - spare:
        victim = _least_needed(kept, below=Importance.PREVIOUS)
        if victim is None:
            break
        kept.remove(victim)
        unload.append(victim)
    return Plan(tuple(item.engine_name for item in unload), tuple(item.engine_name for item in load))


def plan_room(wanted: Wanted, loaded: Iterable[Loaded], slots: int, *, is_asked_for: bool) -> Plan | None:
    """What must go so that this version can be loaded; None when nothing may go.

    Takes less important versions, and when a request asks for this one now also one as important: the least
    important first, of these the least recently used.
    """
    kept = list(loaded)
    if any(item.engine_name == wanted.engine_name for item in kept):
        return Plan()
    unload: list[str] = []
    while len(kept) >= slots:
        victim = _least_needed(kept, below=wanted.importance + is_asked_for)
        if victim is None:
            return None
        kept.remove(victim)
        unload.append(victim.engine_name)
    return Plan(tuple(unload), (wanted.engine_name,))


def rendezvous_order(version_id: VersionId, replica_ids: Sequence[ReplicaId]) -> list[ReplicaId]:
    """The replicas by highest random weight for this version: every caller gets the same order, and a
    replica that comes or goes moves only its own share of the versions."""

    def weight(replica_id: ReplicaId) -> bytes:
        return hashlib.blake2b(f"{replica_id} {version_id}".encode(), digest_size=8).digest()

    return sorted(replica_ids, key=weight, reverse=True)


def _least_needed(loaded: Iterable[Loaded], below: int) -> Loaded | None:
    """What to unload first: the least important, of these the least recently used."""
    candidates = [item for item in loaded if item.importance < below and not item.is_held]
    return min(candidates, key=lambda item: (item.importance, item.used_at), default=None)
