"""Fine-tuning jobs, events and checkpoints in OpenAI's shapes, and ours beside them."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any, Literal

from pydantic import BaseModel

from finetune.jobs.job import Job, JobCheckpoint, JobEvent

Value = float | int | str | bool | None
_OPENAI_HYPERPARAMETERS = ("n_epochs", "batch_size", "learning_rate_multiplier")


class JobErrorObject(BaseModel):
    """Why a job failed."""

    code: str
    message: str
    param: str | None


class JobObject(BaseModel):
    """OpenAI's `fine_tuning.job`; from `user_provided_suffix` on, ours."""

    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    finished_at: int | None
    estimated_finish: int | None
    status: Literal["validating_files", "queued", "running", "succeeded", "failed", "cancelled"]
    error: JobErrorObject | None
    model: str
    #: `NAME@NUMBER` once it succeeded; goes into `model`.
    fine_tuned_model: str | None
    organization_id: str
    #: Null for a job on logged traffic.
    training_file: str | None
    validation_file: str | None
    result_files: list[str] = []
    trained_tokens: int | None
    seed: int
    hyperparameters: dict[str, Value]
    method: dict[str, Any]
    integrations: list[Any] = []
    metadata: dict[str, str]
    user_provided_suffix: str
    training_data: dict[str, Any] | None
    #: What a running job is doing.
    stage: str | None
    #: The latest step: step, total_steps, loss, seconds_left, ...
    progress: dict[str, Any] | None
    #: Held-out figures of base and version.
    metrics: dict[str, float]
    dataset_id: str | None
    started_at: int | None


class EventObject(BaseModel):
    """OpenAI's `fine_tuning.job.event`."""

    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: Literal["info", "warn", "error"]
    type: Literal["message", "metrics"]
    message: str
    data: dict[str, Any] | None


class CheckpointObject(BaseModel):
    """OpenAI's `fine_tuning.job.checkpoint`."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    step_number: int
    metrics: dict[str, float]


def job_object(job: Job) -> JobObject:
    """The job as clients see it."""
    request = job.request
    hyperparameters = _hyperparameters(job)
    return JobObject(
        id=job.job_id,
        created_at=int(job.created_at),
        finished_at=_seconds(job.finished_at),
        estimated_finish=_seconds(job.estimated_finish),
        status=job.status.value,
        error=JobErrorObject(**asdict(job.error)) if job.error is not None else None,
        model=job.base_model,
        fine_tuned_model=job.fine_tuned_model,
        organization_id=job.project_id,
        training_file=request.training_file,
        validation_file=request.validation_file,
        trained_tokens=job.trained_tokens,
        seed=request.seed,
        hyperparameters={name: hyperparameters.get(name, "auto") for name in _OPENAI_HYPERPARAMETERS},
        method={"type": request.method, request.method: {"hyperparameters": hyperparameters}},
        metadata=request.metadata,
        user_provided_suffix=job.suffix,
        training_data=request.training_data.model_dump(mode="json", exclude_none=True)
        if request.training_data is not None
        else None,
        stage=job.stage.value if job.stage is not None else None,
        progress=_progress(job),
        metrics=job.metrics,
        dataset_id=job.dataset_id,
        started_at=_seconds(job.started_at),
    )


def event_object(event: JobEvent) -> EventObject:
    """The event as clients see it."""
    return EventObject(
        id=event.event_id,
        created_at=int(event.created_at),
        level=event.level,
        type=event.type,
        message=event.message,
        data=event.data,
    )


def checkpoint_object(checkpoint: JobCheckpoint, suffix: str) -> CheckpointObject:
    """The checkpoint as clients see it."""
    return CheckpointObject(
        id=checkpoint.checkpoint_id,
        created_at=int(checkpoint.created_at),
        fine_tuned_model_checkpoint=f"{suffix}:ckpt-step-{checkpoint.step}",
        fine_tuning_job_id=checkpoint.job_id,
        step_number=checkpoint.step,
        metrics={"step": checkpoint.step, **checkpoint.metrics},
    )


def _hyperparameters(job: Job) -> dict[str, Value]:
    """What was asked for, "auto" where nothing was; the values chosen for it once they are known."""
    asked = job.request.hyperparameters.model_dump(exclude_none=True)
    asked.pop("seed", None)
    defaults: dict[str, Value] = dict.fromkeys(("n_epochs", "batch_size"), "auto")
    if "learning_rate" not in asked:
        defaults["learning_rate_multiplier"] = "auto"
    if job.hyperparameters is None:
        return defaults | asked
    if asked.get("learning_rate_multiplier", "auto") == "auto" and "learning_rate" not in asked:
        asked["learning_rate_multiplier"] = 1.0
    return defaults | asked | job.hyperparameters


def _progress(job: Job) -> dict[str, Any] | None:
    if job.progress is None:
        return None
    latest = job.progress
    return asdict(replace(latest, seconds_left=None) if job.status.is_terminal else latest)


def _seconds(time: float | None) -> int | None:
    return int(time) if time is not None else None
