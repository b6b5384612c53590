"""The registry's queries: rows in, the nouns of `version.py` out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, func, insert, select, update

from adapters_store.manifest import Manifest
from adapters_store.names import split_version_name
from adapters_store.version import AdapterSummary, Alias, Rollout, RolloutState, Version, VersionState
from loraway.database import insert_once
from loraway.ids import AdapterId, ProjectId, RolloutId, VersionId
from loraway.schema import adapters, alias_moves, aliases, versions

#: Per replica: load and proof times in seconds, largest logprob difference.
Report = dict[str, Any]


def _select_versions() -> Select[Any]:
    columns: list[ColumnElement[Any]] = [
        *versions.c,
        adapters.c.name.label("adapter_name"),
        adapters.c.project_id,
        adapters.c.base_model,
    ]
    return select(*columns).join(adapters, adapters.c.id == versions.c.adapter_id)


def _version(row: Row[Any], adapters_dir: Path) -> Version:
    return Version(
        version_id=VersionId(row.id),
        adapter_id=AdapterId(row.adapter_id),
        adapter_name=row.adapter_name,
        project_id=ProjectId(row.project_id),
        number=row.number,
        engine_name=row.engine_name,
        path=adapters_dir / row.engine_name,
        rank=row.rank,
        base_model=row.base_model,
        state=VersionState(row.state),
        manifest=Manifest.model_validate(row.manifest),
        job_id=row.job_id,
        created_at=row.created_at,
    )


def insert_version(connection: Connection, version: Version) -> None:
    """The row of a new version. Raises IntegrityError when its job or engine name is there already."""
    connection.execute(
        insert(versions).values(
            id=version.version_id,
            adapter_id=version.adapter_id,
            number=version.number,
            engine_name=version.engine_name,
            folder=f"adapters/{version.engine_name}",
            rank=version.rank,
            manifest=version.manifest.model_dump(mode="json"),
            state=version.state,
            job_id=version.job_id,
            created_at=version.created_at,
        )
    )


def version_by_id(connection: Connection, version_id: VersionId, adapters_dir: Path) -> Version | None:
    row = connection.execute(_select_versions().where(versions.c.id == version_id)).first()
    return _version(row, adapters_dir) if row is not None else None


def version_by_job(connection: Connection, job_id: str, adapters_dir: Path) -> Version | None:
    row = connection.execute(_select_versions().where(versions.c.job_id == job_id)).first()
    return _version(row, adapters_dir) if row is not None else None


def find_version(
    connection: Connection, project_id: ProjectId, name: str, adapters_dir: Path
) -> Version | None:
    """By alias (`codename`) or by version name (`codename@1`)."""
    split = split_version_name(name)
    query = _select_versions().where(adapters.c.project_id == project_id)
    if split is not None:
        query = query.where(adapters.c.name == split[0], versions.c.number == split[1])
    else:
        query = query.join(aliases, aliases.c.version_id == versions.c.id).where(
            aliases.c.project_id == project_id, aliases.c.name == name
        )
    row = connection.execute(query).first()
    return _version(row, adapters_dir) if row is not None else None


def versions_of(
    connection: Connection, project_id: ProjectId, adapter_name: str, adapters_dir: Path
) -> list[Version]:
    query = _select_versions().where(adapters.c.project_id == project_id, adapters.c.name == adapter_name)
    found = connection.execute(query.order_by(versions.c.number))
    return [_version(row, adapters_dir) for row in found]


def wanted_versions(connection: Connection, base_model: str, adapters_dir: Path) -> list[Version]:
    """Alias targets, then previous targets, then the rest; newest first in each group."""
    pointers = connection.execute(select(aliases.c.version_id, aliases.c.previous_version_id)).all()
    targets = {row.version_id for row in pointers}
    previous = {row.previous_version_id for row in pointers}
    query = _select_versions().where(
        adapters.c.base_model == base_model, versions.c.state != VersionState.RETIRED
    )
    newest_first = connection.execute(query.order_by(versions.c.id.desc()))
    found = sorted(newest_first, key=lambda row: 0 if row.id in targets else 1 if row.id in previous else 2)
    return [_version(row, adapters_dir) for row in found]


def adapter_summaries(connection: Connection, project_id: ProjectId) -> list[AdapterSummary]:
    counts = (
        select(versions.c.adapter_id, func.count().label("version_count"))
        .group_by(versions.c.adapter_id)
        .subquery()
    )
    query = (
        select(adapters, counts.c.version_count)
        .join(counts, counts.c.adapter_id == adapters.c.id, isouter=True)
        .where(adapters.c.project_id == project_id)
        .order_by(adapters.c.name)
    )
    return [_summary(connection, row) for row in connection.execute(query).all()]


def _summary(connection: Connection, row: Row[Any]) -> AdapterSummary:
    alias = alias_by_name(connection, ProjectId(row.project_id), row.name)
    serving = None
    if alias is not None:
        target = connection.execute(_select_versions().where(versions.c.id == alias.version_id)).one()
        serving = f"{target.adapter_name}@{target.number}"
    return AdapterSummary(
        adapter_id=AdapterId(row.id),
        project_id=ProjectId(row.project_id),
        name=row.name,
        base_model=row.base_model,
        created_at=row.created_at,
        version_count=row.version_count or 0,
        alias=alias,
        serving=serving,
    )


def lock_adapter(connection: Connection, adapter_id: AdapterId) -> None:
    """Make others that lock the same adapter wait until this transaction ends."""
    connection.execute(select(adapters.c.id).where(adapters.c.id == adapter_id).with_for_update())


def alias_by_name(connection: Connection, project_id: ProjectId, name: str) -> Alias | None:
    query = select(aliases).where(aliases.c.project_id == project_id, aliases.c.name == name)
    row = connection.execute(query).first()
    if row is None:
        return None
    previous = VersionId(row.previous_version_id) if row.previous_version_id is not None else None
    return Alias(row.name, project_id, VersionId(row.version_id), previous, row.updated_at)


def upsert_alias(connection: Connection, alias: Alias) -> None:
    moved = {
        "version_id": alias.version_id,
        "previous_version_id": alias.previous_version_id,
        "updated_at": alias.updated_at,
    }
    mine = (aliases.c.project_id == alias.project_id) & (aliases.c.name == alias.name)
    if connection.execute(update(aliases).where(mine).values(**moved)).rowcount:
        return
    insert_once(connection, aliases, project_id=alias.project_id, name=alias.name, **moved)


def predecessor(
    connection: Connection, project_id: ProjectId, name: str, version_id: VersionId
) -> VersionId | None:
    """What the alias pointed at before `version_id` last came under it by a rollout."""
    found = connection.execute(
        select(alias_moves.c.from_version_id)
        .where(
            alias_moves.c.project_id == project_id,
            alias_moves.c.name == name,
            alias_moves.c.to_version_id == version_id,
            alias_moves.c.reason != "rollback",
        )
        .order_by(alias_moves.c.id.desc())
    ).scalar()
    return VersionId(found) if found is not None else None


def rollout(row: Row[Any]) -> Rollout:
    return Rollout(
        rollout_id=RolloutId(row.id),
        project_id=ProjectId(row.project_id),
        alias=row.alias,
        version_id=VersionId(row.version_id),
        state=RolloutState(row.state),
        error=row.error,
        report=row.report,
        created_at=row.created_at,
        finished_at=row.finished_at,
    )
