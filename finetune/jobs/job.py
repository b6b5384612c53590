"""The nouns of a fine-tuning job: the job itself, its progress, events, checkpoints, and how it ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, TypeVar

from finetune.jobs.lease import Lease
from finetune.jobs.request import JobRequest
from finetune.jobs.states import JobStage, JobState
from loraway.ids import DatasetId, JobId, ProjectId, VersionId

Level = Literal["info", "warn", "error"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Part of a list, newest first; `after` of the next one is the last item's id."""

    items: list[T]
    has_more: bool


@dataclass(frozen=True, slots=True)
class Progress:
    """One optimiser step is done."""

    step: int
    total_steps: int
    #: Mean over the completion tokens of this step.
    loss: float
    learning_rate: float | None = None
    #: Tokens trained on so far.
    tokens: int | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None


@dataclass(frozen=True, slots=True)
class JobError:
    """Why a job failed, in OpenAI's words: a code, a message for people, the field it is about."""

    code: str
    message: str
    param: str | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """One fine-tuning job."""

    job_id: JobId
    project_id: ProjectId
    base_model: str
    suffix: str
    request: JobRequest
    status: JobState
    #: What it is doing while it runs.
    stage: JobStage | None
    error: JobError | None
    dataset_id: DatasetId | None
    version_id: VersionId | None
    #: `codename@1` once it succeeded.
    fine_tuned_model: str | None
    trained_tokens: int | None
    #: The latest step.
    progress: Progress | None
    #: Held-out figures of base and version once it succeeded.
    metrics: dict[str, float]
    #: Concrete values, once the number of examples is known.
    hyperparameters: dict[str, float | int | str | bool | None] | None
    cancel_requested: bool
    created_at: float
    started_at: float | None
    finished_at: float | None
    estimated_finish: float | None
    #: How often a trainer has taken it up.
    attempts: int


@dataclass(frozen=True, slots=True)
class LeasedJob:
    """A job and the right to run it."""

    job: Job
    lease: Lease


@dataclass(frozen=True, slots=True)
class JobEvent:
    """Something that happened to a job."""

    event_id: str
    job_id: JobId
    level: Level
    type: Literal["message", "metrics"]
    message: str
    data: dict[str, Any] | None
    created_at: float


@dataclass(frozen=True, slots=True)
class JobCheckpoint:
    """A step from which training can go on."""

    checkpoint_id: str
    job_id: JobId
    step: int
    metrics: dict[str, float]
    created_at: float


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The version is registered and rolled out. `message` becomes the job's last event."""

    version_id: VersionId
    fine_tuned_model: str
    trained_tokens: int
    metrics: dict[str, float]
    message: str

    state: ClassVar[JobState] = JobState.SUCCEEDED
    level: ClassVar[Level] = "info"


@dataclass(frozen=True, slots=True)
class Failed:
    """It cannot succeed."""

    error: JobError

    state: ClassVar[JobState] = JobState.FAILED
    level: ClassVar[Level] = "error"

    @property
    def message(self) -> str:
        return f"The job failed: {self.error.message}"


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Its process is gone because somebody cancelled it."""

    message: str = "The job was cancelled."

    state: ClassVar[JobState] = JobState.CANCELLED
    level: ClassVar[Level] = "info"


Outcome = Succeeded | Failed | Cancelled
