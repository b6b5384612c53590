"""From a served version back to the job, the dataset and the completions it was made of; and forward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, select

from loraway.database import Database
from loraway.errors import NotFound
from loraway.ids import CompletionId, DatasetId, JobId, ProjectId, VersionId
from loraway.schema import adapters, dataset_completions, datasets, jobs, versions


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a version comes from."""

    version_id: VersionId
    #: None for a version that was registered by hand.
    job_id: JobId | None
    dataset_id: DatasetId | None
    dataset_sha256: str | None
    #: Completions in the dataset, oldest first; empty when it came from a file.
    completion_ids: tuple[CompletionId, ...]


class Lineage:
    """Reads how versions, jobs, datasets and completions hang together, within one project."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def origin(self, project_id: ProjectId, version_id: VersionId) -> Origin:
        """What a version was made of. Raises NotFound."""
        with self._database.read() as connection:
            row = connection.execute(
                select(versions.c.job_id, datasets.c.id.label("dataset_id"), datasets.c.sha256)
                .join(adapters, adapters.c.id == versions.c.adapter_id)
                .join(jobs, jobs.c.id == versions.c.job_id, isouter=True)
                .join(datasets, datasets.c.id == jobs.c.dataset_id, isouter=True)
                .where(versions.c.id == version_id, adapters.c.project_id == project_id)
            ).first()
            if row is None:
                raise NotFound(f"There is no version {version_id[:80]!r} in this project.")
            found = connection.execute(
                select(dataset_completions.c.completion_id)
                .where(dataset_completions.c.dataset_id == row.dataset_id)
                .order_by(dataset_completions.c.completion_id)
            )
            return Origin(
                version_id=version_id,
                job_id=JobId(row.job_id) if row.job_id is not None else None,
                dataset_id=DatasetId(row.dataset_id) if row.dataset_id is not None else None,
                dataset_sha256=row.sha256,
                completion_ids=tuple(CompletionId(each) for each in found.scalars()),
            )

    def versions_from_completion(self, project_id: ProjectId, completion_id: str) -> list[VersionId]:
        """The versions that have learnt from a completion, oldest first."""
        query = _versions_with_datasets().join(
            dataset_completions, dataset_completions.c.dataset_id == datasets.c.id
        )
        return self._versions(project_id, query, dataset_completions.c.completion_id == completion_id)

    def versions_from_dataset(self, project_id: ProjectId, sha256: str) -> list[VersionId]:
        """The versions trained on the dataset with this content, oldest first."""
        return self._versions(project_id, _versions_with_datasets(), datasets.c.sha256 == sha256)

    def _versions(
        self, project_id: ProjectId, query: Select[Any], condition: ColumnElement[bool]
    ) -> list[VersionId]:
        mine = query.where(datasets.c.project_id == project_id, condition).order_by(versions.c.id)
        with self._database.read() as connection:
            return [VersionId(each) for each in connection.execute(mine).scalars()]


def _versions_with_datasets() -> Select[Any]:
    return (
        select(versions.c.id)
        .join(jobs, jobs.c.id == versions.c.job_id)
        .join(datasets, datasets.c.id == jobs.c.dataset_id)
    )
