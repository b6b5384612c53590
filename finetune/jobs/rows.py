"""Job rows in, the nouns of `job.py` out."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row

from finetune.jobs.job import Job, JobCheckpoint, JobError, JobEvent, Progress
from finetune.jobs.request import JobRequest
from finetune.jobs.states import JobStage, JobState
from loraway.ids import DatasetId, JobId, ProjectId, VersionId


def job(row: Row[Any]) -> Job:
    return Job(
        job_id=JobId(row.id),
        project_id=ProjectId(row.project_id),
        base_model=row.base_model,
        suffix=row.suffix,
        request=JobRequest.model_validate(row.request),
        status=JobState(row.status),
        stage=JobStage(row.stage) if row.stage is not None else None,
        error=JobError(**row.error) if row.error is not None else None,
        dataset_id=DatasetId(row.dataset_id) if row.dataset_id is not None else None,
        version_id=VersionId(row.version_id) if row.version_id is not None else None,
        fine_tuned_model=row.fine_tuned_model,
        trained_tokens=row.trained_tokens,
        progress=Progress(**row.progress) if row.progress is not None else None,
        metrics=row.metrics or {},
        hyperparameters=row.hyperparameters,
        cancel_requested=row.cancel_requested,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        estimated_finish=row.estimated_finish,
        attempts=row.attempts,
    )


def event(row: Row[Any]) -> JobEvent:
    return JobEvent(
        event_id=row.id,
        job_id=JobId(row.job_id),
        level=row.level,
        type=row.type,
        message=row.message,
        data=row.data,
        created_at=row.created_at,
    )


def checkpoint(row: Row[Any]) -> JobCheckpoint:
    return JobCheckpoint(row.id, JobId(row.job_id), row.step, row.metrics, row.created_at)
