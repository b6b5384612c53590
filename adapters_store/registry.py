"""The registry: the only writer of adapters, versions, aliases and rollouts."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from sqlalchemy import Connection, insert, select, update
from sqlalchemy.exc import IntegrityError

from adapters_store import rows
from adapters_store.blobs import hash_file, rename_folder, staged_folder, sync_files
from adapters_store.manifest import MANIFEST_NAME, Manifest
from adapters_store.names import check_name
from adapters_store.rollouts import Rollouts
from adapters_store.version import AdapterSummary, Alias, Rollout, RolloutState, Version, VersionState
from adapters_store.weights import adapter_files, read_rank
from loraway.database import Database, bump_revision, insert_once
from loraway.errors import Conflict, InvalidRequest, LorawayError, NotFound
from loraway.ids import ADAPTER, VERSION, AdapterId, ProjectId, RolloutId, VersionId, new_id
from loraway.schema import adapters, alias_moves, base_models, versions

_ENGINE_NAME_SUFFIX = 6
_ATTEMPTS = 3


class Registry:
    """Adapters, their immutable versions, and the aliases that clients call.

    Owns the tables `adapters`, `versions`, `aliases`, `alias_moves`, `rollouts` and the folder
    `adapters_dir`. Thread-safe, and safe for many processes: each method is one short transaction.
    """

    def __init__(self, database: Database, adapters_dir: Path) -> None:
        self._database = database
        self._adapters_dir = adapters_dir
        self._rollouts = Rollouts(database)

    # --- versions

    def register(
        self,
        project_id: ProjectId,
        adapter_name: str,
        base_model: str,
        folder: Path,
        manifest: Manifest,
        job_id: str | None,
    ) -> Version:
        """Store a trained adapter as the next version of `adapter_name`, made when it is new.

        The files are on the disk before the row exists, and a crash in between uses up no number. A second
        call with the same `job_id` returns the first one's version. `manifest.files` is filled in here.
        Raises InvalidRequest (name, files, rank) and Conflict (the adapter is of another base model).
        """
        check_name(adapter_name, param="suffix")
        if job_id is not None and (existing := self._version_of_job(job_id)) is not None:
            return existing
        with staged_folder(self._adapters_dir) as staging:
            manifest = _fill(staging, folder, manifest.model_copy(update={"job_id": job_id}))
            for attempt in range(1, _ATTEMPTS + 1):
                try:
                    return self._publish(project_id, adapter_name, base_model, staging, manifest)
                except IntegrityError:
                    # Another process stored this job's version, or two engine names collided (1 in 10^9).
                    if job_id is not None and (existing := self._version_of_job(job_id)) is not None:
                        return existing
                    if attempt == _ATTEMPTS:
                        raise
        raise AssertionError("unreachable")

    def version(self, version_id: VersionId) -> Version:
        """The version with this id. Raises NotFound."""
        with self._database.read() as connection:
            version = rows.version_by_id(connection, version_id, self._adapters_dir)
        if version is None:
            raise NotFound(f"There is no version {version_id[:80]!r}.")
        return version

    def find(self, project_id: ProjectId, name: str) -> Version | None:
        """What `codename` (the alias's target) or `codename@1` stands for in this project."""
        with self._database.read() as connection:
            return rows.find_version(connection, project_id, name, self._adapters_dir)

    def adapters(self, project_id: ProjectId) -> list[AdapterSummary]:
        """Every adapter of the project, by name."""
        with self._database.read() as connection:
            return rows.adapter_summaries(connection, project_id)

    def versions(self, project_id: ProjectId, adapter_name: str) -> list[Version]:
        """The adapter's versions, oldest first; empty for an unknown adapter."""
        with self._database.read() as connection:
            return rows.versions_of(connection, project_id, adapter_name, self._adapters_dir)

    def wanted_versions(self, base_model: str) -> list[Version]:
        """What should be loaded for a base model, most important first.

        Alias targets, then what a rollback would need, then the rest; newest first in each group. Retired
        versions are left out.
        """
        with self._database.read() as connection:
            return rows.wanted_versions(connection, base_model, self._adapters_dir)

    def verify(self, version: Version) -> None:
        """Hash every file of the version again. Raises Conflict naming one that changed or is missing."""
        for name, expected in version.manifest.files.items():
            path = version.path / name
            if not path.is_file():
                raise Conflict(f"{version.name} has lost its file {name}; train or register it again.")
            if hash_file(path) != expected:
                raise Conflict(f"The file {name} of {version.name} is not the one that was registered.")

    def remove_orphans(self, older_than_seconds: float = 3600.0) -> int:
        """Delete what crashed registrations left in the adapters' folder; returns how many folders.

        No version, and so no engine, ever knew them. Young ones may belong to a registration under way.
        """
        if not self._adapters_dir.is_dir():
            return 0
        with self._database.read() as connection:
            known = set(connection.execute(select(versions.c.engine_name)).scalars())
        oldest = time.time() - older_than_seconds
        orphans = [
            path
            for path in self._adapters_dir.iterdir()
            if path.name not in known and path.stat().st_ctime < oldest
        ]
        for path in orphans:
            shutil.rmtree(path, ignore_errors=True)
        return len(orphans)

    # --- aliases

    def alias(self, project_id: ProjectId, name: str) -> Alias | None:
        """The alias of this name, once something was rolled out under it."""
        with self._database.read() as connection:
            return rows.alias_by_name(connection, project_id, name)

    def move_alias(self, project_id: ProjectId, name: str, version_id: VersionId, reason: str) -> Alias:
        """Point the alias at a version, in one transaction that the gateway workers see.

        A move to the alias's previous version is a rollback, and recorded as one: the alias then has the
        previous version that it had when that version was first under it, so that rolling back again goes
        further back. A move to where it points already changes nothing. Raises NotFound, InvalidRequest.
        """
        check_name(name, param="alias")
        with self._database.write() as connection:
            version = rows.version_by_id(connection, version_id, self._adapters_dir)
            if version is None or version.project_id != project_id:
                raise NotFound(f"There is no version {version_id[:80]!r} in this project.")
            _refuse_base_model_name(connection, name)
            rows.lock_adapter(connection, version.adapter_id)  # one move at a time, the first one included
            before = rows.alias_by_name(connection, project_id, name)
            if before is not None and before.version_id == version_id:
                return before
            return _move(connection, before, name, version, reason)

    def rollback_target(self, project_id: ProjectId, name: str) -> Version:
        """The version a rollback of this alias goes to. Raises NotFound, or Conflict when there is none."""
        alias = self.alias(project_id, name)
        if alias is None:
            raise NotFound(f"There is no adapter {name[:80]!r} in this project that was rolled out.")
        if alias.previous_version_id is None:
            raise Conflict(f"{name!r} has no earlier version to go back to.")
        return self.version(alias.previous_version_id)

    # --- rollouts

    def request_rollout(self, project_id: ProjectId, alias: str, version_id: VersionId) -> RolloutId:
        """Ask the controller to bring a version to the replicas and then under the alias.

        While a rollout of the same version to the same alias is open, that one is returned.
        """
        check_name(alias, param="alias")
        version = self.version(version_id)
        if version.project_id != project_id:
            raise NotFound(f"There is no version {version_id[:80]!r} in this project.")
        return self._rollouts.request(project_id, alias, version_id)

    def rollout(self, rollout_id: RolloutId) -> Rollout:
        """The rollout with this id. Raises NotFound."""
        return self._rollouts.get(rollout_id)

    def pending_rollouts(self) -> list[Rollout]:
        """Rollouts that have not ended, oldest first, with those a crashed controller left running."""
        return self._rollouts.open()

    def start_rollout(self, rollout_id: RolloutId) -> None:
        """Mark a rollout as running."""
        self._rollouts.start(rollout_id)

    def finish_rollout(
        self,
        rollout_id: RolloutId,
        state: RolloutState,
        error: LorawayError | None = None,
        report: rows.Report | None = None,
    ) -> None:
        """End a rollout as done or failed; one that has ended stays as it is."""
        self._rollouts.finish(rollout_id, state, error, report)

    # --- inside

    def _version_of_job(self, job_id: str) -> Version | None:
        with self._database.read() as connection:
            return rows.version_by_job(connection, job_id, self._adapters_dir)

    def _publish(
        self, project_id: ProjectId, adapter_name: str, base_model: str, staging: Path, manifest: Manifest
    ) -> Version:
        """Number, folder and row in one transaction; the folder is flushed already and only renamed here."""
        with self._database.write() as connection:
            adapter_id, number = _take_number(connection, project_id, adapter_name, base_model)
            version_id = VersionId(new_id(VERSION))
            engine_name = f"{adapter_name}@{number}.{version_id[-_ENGINE_NAME_SUFFIX:]}"
            version = Version(
                version_id=version_id,
                adapter_id=adapter_id,
                adapter_name=adapter_name,
                project_id=project_id,
                number=number,
                engine_name=engine_name,
                path=self._adapters_dir / engine_name,
                rank=manifest.rank,
                base_model=base_model,
                state=VersionState.REGISTERED,
                manifest=manifest,
                job_id=manifest.job_id,
                created_at=time.time(),
            )
            rows.insert_version(connection, version)
            bump_revision(connection)
            # Last: when the commit fails after this, the folder is an orphan that `remove_orphans` finds.
            rename_folder(staging, version.path)
        return version


def _fill(staging: Path, folder: Path, manifest: Manifest) -> Manifest:
    """Copy the adapter's files and its manifest into `staging`, checked, hashed and on the disk."""
    for path in adapter_files(folder):
        shutil.copyfile(path, staging / path.name)
    if (rank := read_rank(staging)) != manifest.rank:
        raise InvalidRequest(f"The adapter has rank {rank}, its manifest says {manifest.rank}.")
    files = {path.name: hash_file(path) for path in adapter_files(staging)}
    for name, expected in manifest.files.items():
        if files.get(name) != expected:
            raise InvalidRequest(f"The file {name} is not the one that the manifest describes.")
    filled = manifest.model_copy(update={"files": files})
    (staging / MANIFEST_NAME).write_text(filled.model_dump_json(indent=2) + "\n", encoding="utf-8")
    sync_files(staging)
    return filled


def _take_number(
    connection: Connection, project_id: ProjectId, name: str, base_model: str
) -> tuple[AdapterId, int]:
    """The adapter's id and the next version's number; others wait until this transaction ends."""
    _refuse_base_model_name(connection, name)
    insert_once(
        connection,
        adapters,
        id=new_id(ADAPTER),
        project_id=project_id,
        name=name,
        base_model=base_model,
        next_number=1,
        created_at=time.time(),
    )
    mine = (adapters.c.project_id == project_id) & (adapters.c.name == name)
    connection.execute(update(adapters).where(mine).values(next_number=adapters.c.next_number + 1))
    row = connection.execute(select(adapters).where(mine)).one()
    if row.base_model != base_model:
        raise Conflict(
            f"The adapter {name!r} belongs to the base model {row.base_model!r}, not {base_model!r}; "
            "choose another suffix."
        )
    return AdapterId(row.id), row.next_number - 1


def _refuse_base_model_name(connection: Connection, name: str) -> None:
    taken = connection.execute(select(base_models.c.name).where(base_models.c.name == name)).first()
    if taken is not None:
        raise InvalidRequest(f"{name!r} is the name of a base model; choose another one.", param="suffix")


def _move(connection: Connection, before: Alias | None, name: str, version: Version, reason: str) -> Alias:
    is_rollback = before is not None and before.previous_version_id == version.version_id
    previous = before.version_id if before is not None else None
    if is_rollback:
        reason, previous = (
            "rollback",
            rows.predecessor(connection, version.project_id, name, version.version_id),
        )
    alias = Alias(name, version.project_id, version.version_id, previous, time.time())
    rows.upsert_alias(connection, alias)
    connection.execute(
        insert(alias_moves).values(
            project_id=alias.project_id,
            name=name,
            from_version_id=before.version_id if before is not None else None,
            to_version_id=version.version_id,
            reason=reason,
            moved_at=alias.updated_at,
        )
    )
    connection.execute(
        update(versions)
        .where(versions.c.id == version.version_id, versions.c.state == VersionState.REGISTERED)
        .values(state=VersionState.SERVING)
    )
    bump_revision(connection)
    return alias
