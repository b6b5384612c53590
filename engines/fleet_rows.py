"""The tables `replicas` and `residencies`: the controller's alone to write.

Each method is one short transaction and blocks; the fleet calls them on a thread. What a gateway worker must
see also bumps the routing revision, in the same transaction.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import Connection, delete, insert, select, update

from engines.engine import EngineKind, EngineLoad
from engines.plan import Importance, Wanted
from loraway.database import Database, bump_revision, insert_once, read_revision
from loraway.ids import REPLICA, ReplicaId, VersionId, new_id
from loraway.schema import adapters, aliases, base_models, replicas, residencies, versions


class ReplicaState(StrEnum):
    """What a replica can be used for."""

    #: Not answered yet.
    STARTING = "starting"
    #: Serves its base model, and the versions that have a residency there.
    READY = "ready"
    #: Does not answer, or says that it cannot serve.
    UNHEALTHY = "unhealthy"
    #: Not among the engines of this deployment any more.
    GONE = "gone"


@dataclass(slots=True, eq=False)
class Residency:
    """A version that is loaded and proved on a replica: one object for each time that it was."""

    version_id: VersionId
    engine_name: str
    used_at: float


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A row of `base_models`."""

    name: str
    path: str
    revision: str
    template_sha256: str


class FleetRows:
    """Writes replicas, residencies and the base model's row; reads what is wanted."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def write_base_model(self, model: BaseModel) -> None:
        values = {"path": model.path, "revision": model.revision, "template_sha256": model.template_sha256}
        with self._database.write() as connection:
            is_new = insert_once(connection, base_models, name=model.name, created_at=time.time(), **values)
            if not is_new:
                connection.execute(
                    update(base_models).where(base_models.c.name == model.name).values(**values)
                )
            bump_revision(connection)

    def enrol(self, url: str, kind: EngineKind, base_model: str, slots: int) -> ReplicaId:
        """The replica at this URL, made when it is new. What was loaded there counts only for the same
        engine and base model."""
        with self._database.write() as connection:
            row = connection.execute(select(replicas).where(replicas.c.url == url)).first()
            if row is None:
                replica_id = ReplicaId(new_id(REPLICA))
                values = {"engine": kind, "base_model": base_model, "adapter_slots": slots}
                connection.execute(
                    insert(replicas).values(
                        id=replica_id, url=url, state=ReplicaState.STARTING, created_at=time.time(), **values
                    )
                )
            else:
                replica_id = ReplicaId(row.id)
                if (row.engine, row.base_model) != (kind, base_model):
                    connection.execute(delete(residencies).where(residencies.c.replica_id == replica_id))
                connection.execute(
                    update(replicas)
                    .where(replicas.c.id == replica_id)
                    .values(
                        state=ReplicaState.STARTING, engine=kind, base_model=base_model, adapter_slots=slots
                    )
                )
            bump_revision(connection)
            return replica_id

    def retire_others(self, replica_ids: Collection[ReplicaId]) -> None:
        """Mark every other replica as gone, with nothing loaded."""
        with self._database.write() as connection:
            connection.execute(delete(residencies).where(residencies.c.replica_id.not_in(replica_ids)))
            connection.execute(
                update(replicas).where(replicas.c.id.not_in(replica_ids)).values(state=ReplicaState.GONE)
            )
            bump_revision(connection)

    def residencies_of(self, replica_id: ReplicaId) -> list[Residency]:
        """What is loaded and proved there, as last recorded."""
        query = (
            select(residencies, versions.c.engine_name)
            .join(versions, versions.c.id == residencies.c.version_id)
            .where(residencies.c.replica_id == replica_id, residencies.c.state == "loaded")
        )
        with self._database.read() as connection:
            return [
                Residency(VersionId(row.version_id), row.engine_name, row.used_at or row.updated_at)
                for row in connection.execute(query)
            ]

    def record_state(
        self,
        replica_id: ReplicaId,
        state: ReplicaState,
        error: str | None,
        load: EngineLoad | None,
        lost: Collection[VersionId] = (),
    ) -> None:
        """A change of a replica's state, together with the residencies that it has lost."""
        figures = {"state": state, "error": error, "seen_at": time.time(), **_load_columns(load)}
        if state != ReplicaState.READY:
            del figures["seen_at"]
        with self._database.write() as connection:
            _delete_residencies(connection, replica_id, lost)
            connection.execute(update(replicas).where(replicas.c.id == replica_id).values(**figures))
            bump_revision(connection)

    def record_load(self, replica_id: ReplicaId, load: EngineLoad, used: Collection[VersionId]) -> None:
        """The replica's load figures and which versions are in use; no worker waits for these."""
        with self._database.write() as connection:
            connection.execute(
                update(replicas)
                .where(replicas.c.id == replica_id)
                .values(seen_at=time.time(), **_load_columns(load))
            )
            if used:
                self._touch(connection, replica_id, used)

    def record_used(self, replica_id: ReplicaId, version_id: VersionId) -> None:
        with self._database.write() as connection:
            self._touch(connection, replica_id, [version_id])

    def record_loaded(self, replica_id: ReplicaId, version_id: VersionId) -> None:
        """The version may serve on this replica from now on."""
        self._record_residency(replica_id, version_id, "loaded", None)

    def record_failed(self, replica_id: ReplicaId, version_id: VersionId, error: str) -> None:
        """The version could not be loaded or proved there."""
        self._record_residency(replica_id, version_id, "failed", error)

    def forget(self, replica_id: ReplicaId, version_ids: Collection[VersionId]) -> None:
        """No request for these versions goes to this replica any more."""
        with self._database.write() as connection:
            _delete_residencies(connection, replica_id, version_ids)
            bump_revision(connection)

    def revision(self) -> int:
        with self._database.read() as connection:
            return read_revision(connection)

    def aliased_versions(self, base_model: str) -> dict[VersionId, Wanted]:
        """The versions that aliases point at, then those a rollback would need; newest first in each."""
        pointers = select(aliases.c.version_id, aliases.c.previous_version_id)
        mine = (
            select(versions.c.id, versions.c.engine_name)
            .join(adapters, adapters.c.id == versions.c.adapter_id)
            .where(adapters.c.base_model == base_model, versions.c.state != "retired")
        )
        with self._database.read() as connection:
            found = connection.execute(pointers).all()
            targets = {row.version_id for row in found}
            previous = {row.previous_version_id for row in found} - targets - {None}
            chosen = connection.execute(mine.where(versions.c.id.in_(targets | previous))).all()
        wanted = {
            VersionId(row.id): Wanted(
                row.engine_name, Importance.TARGET if row.id in targets else Importance.PREVIOUS
            )
            for row in chosen
        }
        newest_first = sorted(wanted.items(), reverse=True)
        return dict(sorted(newest_first, key=lambda item: -item[1].importance))

    def versions_named(self, engine_names: Iterable[str]) -> dict[str, VersionId]:
        """Which of these engine names are versions of ours that may be loaded."""
        query = select(versions.c.id, versions.c.engine_name).where(
            versions.c.engine_name.in_(list(engine_names)), versions.c.state != "retired"
        )
        with self._database.read() as connection:
            return {row.engine_name: VersionId(row.id) for row in connection.execute(query)}

    def _record_residency(
        self, replica_id: ReplicaId, version_id: VersionId, state: str, error: str | None
    ) -> None:
        key = {"replica_id": replica_id, "version_id": version_id}
        now = time.time()
        values = {"state": state, "error": error, "updated_at": now, "used_at": now}
        with self._database.write() as connection:
            if not insert_once(connection, residencies, **key, **values):
                connection.execute(
                    update(residencies)
                    .where(residencies.c.replica_id == replica_id, residencies.c.version_id == version_id)
                    .values(**values)
                )
            bump_revision(connection)

    @staticmethod
    def _touch(connection: Connection, replica_id: ReplicaId, version_ids: Collection[VersionId]) -> None:
        connection.execute(
            update(residencies)
            .where(residencies.c.replica_id == replica_id, residencies.c.version_id.in_(version_ids))
            .values(used_at=time.time())
        )


def _load_columns(load: EngineLoad | None) -> dict[str, object]:
    if load is None:
        return {"running": 0, "waiting": 0}
    return {"running": load.running, "waiting": load.waiting, "kv_cache_usage": load.kv_cache_usage}


def _delete_residencies(
    connection: Connection, replica_id: ReplicaId, version_ids: Collection[VersionId]
) -> None:
    if version_ids:
        connection.execute(
            delete(residencies).where(
                residencies.c.replica_id == replica_id, residencies.c.version_id.in_(version_ids)
            )
        )
