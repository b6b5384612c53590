"""The states of a fine-tuning job, and which may follow which (OpenAI's names)."""

from __future__ import annotations

from enum import StrEnum


class JobState(StrEnum):
    """Where a job is."""

    #: Its data is being read, checked and frozen into a dataset.
    VALIDATING_FILES = "validating_files"
    #: Waiting for a trainer.
    QUEUED = "queued"
    #: A trainer has its lease.
    RUNNING = "running"
    #: Its version is registered and rolled out.
    SUCCEEDED = "succeeded"
    #: It ended with an error, which says why.
    FAILED = "failed"
    #: Somebody cancelled it.
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


class JobStage(StrEnum):
    """What a running job is doing."""

    PREPARING = "preparing"
    TRAINING = "training"
    EVALUATING = "evaluating"
    REGISTERING = "registering"
    ROLLING_OUT = "rolling_out"


FOLLOWERS: dict[JobState, frozenset[JobState]] = {
    JobState.VALIDATING_FILES: frozenset({JobState.QUEUED, JobState.FAILED, JobState.CANCELLED}),
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.FAILED, JobState.CANCELLED}),
    JobState.RUNNING: frozenset({JobState.QUEUED, JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
}


def may_follow(before: JobState, after: JobState) -> bool:
    """Whether a job in `before` may go to `after`."""
    return after in FOLLOWERS[before]
