"""Reads a routing snapshot out of the database, in one transaction."""

from __future__ import annotations

from urllib.parse import urlsplit

from sqlalchemy import Connection, select

from gateway.routing.snapshot import Key, Replica, Snapshot, Target
from loraway.database import read_revision
from loraway.ids import KeyId, ProjectId, ReplicaId, VersionId
from loraway.schema import (
    adapters,
    aliases,
    api_keys,
    base_models,
    projects,
    replicas,
    residencies,
    versions,
)


def read_snapshot(connection: Connection, stores_by_default: bool) -> Snapshot:
    """Everything that a worker routes by; `stores_by_default` holds for projects that do not say."""
    fleet = _replicas(connection)
    named = set(connection.execute(select(base_models.c.name)).scalars()) | set(fleet)
    return Snapshot(
        revision=read_revision(connection),
        keys=_keys(connection, stores_by_default),
        adapters=_adapters(connection),
        bases={name: Target(base_model=name, name=name) for name in sorted(named)},
        replicas=fleet,
    )


def _keys(connection: Connection, stores_by_default: bool) -> dict[bytes, Key]:
    rows = connection.execute(
        select(api_keys.c.digest, api_keys.c.id, api_keys.c.project_id, projects.c.store_by_default)
        .join(projects, projects.c.id == api_keys.c.project_id)
        .where(api_keys.c.revoked_at.is_(None))
    )
    return {
        bytes(digest): Key(
            KeyId(key_id), ProjectId(project_id), stores_by_default if stores is None else stores
        )
        for digest, key_id, project_id, stores in rows
    }


def _adapters(connection: Connection) -> dict[ProjectId, dict[str, Target]]:
    """Versions by `name@number`, then aliases, whose names cannot look like a version's."""
    named: dict[ProjectId, dict[str, Target]] = {}
    by_version: dict[str, Target] = {}
    rows = connection.execute(
        select(versions, adapters.c.project_id, adapters.c.name, adapters.c.base_model)
        .join(adapters, adapters.c.id == versions.c.adapter_id)
        .where(versions.c.state != "retired")
    )
    for row in rows:
        name = f"{row.name}@{row.number}"
        target = Target(row.base_model, name, VersionId(row.id), row.engine_name, row.rank)
        by_version[row.id] = target
        named.setdefault(ProjectId(row.project_id), {})[name] = target
    for row in connection.execute(select(aliases.c.project_id, aliases.c.name, aliases.c.version_id)):
        if row.version_id in by_version:
            named.setdefault(ProjectId(row.project_id), {})[row.name] = by_version[row.version_id]
    return named


def _replicas(connection: Connection) -> dict[str, tuple[Replica, ...]]:
    loaded: dict[str, set[VersionId]] = {}
    rows = connection.execute(
        select(residencies.c.replica_id, residencies.c.version_id).where(residencies.c.state == "loaded")
    )
    for replica_id, version_id in rows:
        loaded.setdefault(replica_id, set()).add(VersionId(version_id))
    fleet: dict[str, list[Replica]] = {}
    for row in connection.execute(select(replicas).where(replicas.c.state != "gone").order_by(replicas.c.id)):
        address = urlsplit(row.url)
        fleet.setdefault(row.base_model, []).append(
            Replica(
                replica_id=ReplicaId(row.id),
                kind=row.engine,
                host=address.hostname or "127.0.0.1",
                port=address.port or (443 if address.scheme == "https" else 80),
                base_model=row.base_model,
                loaded=frozenset(loaded.get(row.id, ())),
                is_ready=row.state == "ready",
                running=row.running,
                waiting=row.waiting,
            )
        )
    return {base_model: tuple(found) for base_model, found in fleet.items()}
