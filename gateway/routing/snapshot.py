"""What a gateway worker knows: a read-only picture of keys, names, versions and replicas.

`SnapshotSource` (`gateway/routing/source.py`) reads a new one from the database when the routing revision
moves; the data plane holds one reference and never writes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from engines.engine import EngineKind
from loraway.ids import KeyId, ProjectId, ReplicaId, VersionId


@dataclass(frozen=True, slots=True)
class Key:
    """An API key that is valid now."""

    key_id: KeyId
    project_id: ProjectId
    #: Whether requests that do not say `store` are stored.
    stores_by_default: bool


@dataclass(frozen=True, slots=True)
class Replica:
    """A replica that may be sent requests."""

    replica_id: ReplicaId
    kind: EngineKind
    host: str
    port: int
    base_model: str
    #: Versions that are loaded and proved there.
    loaded: frozenset[VersionId]
    is_ready: bool
    running: int = 0
    waiting: int = 0


@dataclass(frozen=True, slots=True)
class Target:
    """What a name in `model` stands for: a base model, or a version of an adapter on it."""

    base_model: str
    #: `codename@2`, or the base model's name.
    name: str
    version_id: VersionId | None = None
    engine_name: str | None = None
    rank: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One consistent reading of the database."""

    revision: int = -1
    #: By the BLAKE2b digest (16 bytes) of the key.
    keys: dict[bytes, Key] = field(default_factory=dict)
    #: By project and name: aliases (`codename`) and versions (`codename@2`).
    adapters: dict[ProjectId, dict[str, Target]] = field(default_factory=dict)
    #: By name; the same for every project.
    bases: dict[str, Target] = field(default_factory=dict)
    #: By base model.
    replicas: dict[str, tuple[Replica, ...]] = field(default_factory=dict)

    def resolve(self, project_id: ProjectId, model: str) -> Target | None:
        """The target of `model` in this project; a base model's name is never shadowed."""
        base = self.bases.get(model)
        if base is not None:
            return base
        mine = self.adapters.get(project_id)
        return mine.get(model) if mine is not None else None

    def names(self, project_id: ProjectId) -> list[str]:
        """Every name this project may ask for."""
        return [*self.bases, *self.adapters.get(project_id, {})]
