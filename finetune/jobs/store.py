"""The job queue: the only writer of jobs, their events and checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, insert, or_, select, update

from finetune.jobs import events, rows
from finetune.jobs.job import (
    Cancelled,
    Failed,
    Job,
    JobCheckpoint,
    JobEvent,
    LeasedJob,
    Level,
    Outcome,
    Page,
    Progress,
    Succeeded,
)
from finetune.jobs.lease import Lease, LeaseLost
from finetune.jobs.request import JobRequest
from finetune.jobs.states import JobStage, JobState, may_follow
from loraway.database import Database
from loraway.errors import NotFound
from loraway.ids import JOB, DatasetId, JobId, ProjectId, new_id
from loraway.schema import jobs

Clock = Callable[[], float]


class JobStore:
    """Creates, hands out and ends jobs; thread-safe, and safe for many processes.

    Clients' side: `create get list events checkpoints cancel`. Trainer's side: `claim`, then writes that
    show the lease and raise `LeaseLost`, changing nothing, once another trainer has taken the job over. Each
    of them renews the lease.
    """

    def __init__(self, database: Database, lease_seconds: float, clock: Clock = time.time) -> None:
        self._database = database
        self._lease_seconds = lease_seconds
        self._clock = clock

    # --- clients

    def create(self, project_id: ProjectId, request: JobRequest) -> Job:
        """Queue a job; `finetune.jobs.submission` has checked what it asks for."""
        job_id = JobId(new_id(JOB))
        with self._database.write() as connection:
            connection.execute(
                insert(jobs).values(
                    id=job_id,
                    project_id=project_id,
                    base_model=request.model,
                    suffix=request.suffix,
                    request=request.model_dump(mode="json", exclude_none=True),
                    status=JobState.QUEUED,
                    cancel_requested=False,
                    created_at=self._clock(),
                    lease_token=0,
                    attempts=0,
                )
            )
            events.add_message(connection, job_id, f"Created fine-tuning job: {job_id}")
            events.add_message(connection, job_id, "Training data validated, job queued.")
            return _read(connection, job_id)

    def get(self, project_id: ProjectId, job_id: str) -> Job:
        """The project's job. Raises NotFound."""
        with self._database.read() as connection:
            return _read_of(connection, project_id, job_id)

    def list(self, project_id: ProjectId, after: str | None = None, limit: int = 20) -> Page[Job]:
        """The project's jobs, newest first."""
        with self._database.read() as connection:
            query = select(jobs).where(jobs.c.project_id == project_id)
            return events.newest_first(connection, query, jobs.c.id, after, limit, rows.job)

    def events(
        self, project_id: ProjectId, job_id: str, after: str | None = None, limit: int = 20
    ) -> Page[JobEvent]:
        """The job's events, newest first. Raises NotFound."""
        with self._database.read() as connection:
            job = _read_of(connection, project_id, job_id)
            return events.list_events(connection, job.job_id, after, limit)

    def checkpoints(
        self, project_id: ProjectId, job_id: str, after: str | None = None, limit: int = 10
    ) -> Page[JobCheckpoint]:
        """The job's checkpoints, newest first. Raises NotFound."""
        with self._database.read() as connection:
            job = _read_of(connection, project_id, job_id)
            return events.list_checkpoints(connection, job.job_id, after, limit)

    def cancel(self, project_id: ProjectId, job_id: str) -> Job:
        """Cancel a waiting job at once; ask the trainer of a running one to. One that has ended stays so.

        A running job is `cancelled` only when its trainer says that the process is gone.
        """
        with self._database.write() as connection:
            job = _read_of(connection, project_id, job_id, lock=True)
            if job.status.is_terminal or job.cancel_requested:
                return job
            if job.status is JobState.RUNNING:
                _change(connection, job.job_id, cancel_requested=True)
                events.add_message(connection, job.job_id, "Cancellation requested.")
            else:
                self._end(connection, job, Cancelled())
            return _read(connection, job.job_id)

    # --- the trainer

    def claim(self, owner: str) -> LeasedJob | None:
        """The oldest job that waits, or whose trainer has fallen silent; None when there is none.

        A job is given to one claimer at a time. The claimer of a job with `cancel_requested` finishes it as
        cancelled.
        """
        with self._database.read() as connection:  # polled all day long: look before taking the write lock
            if connection.execute(select(jobs.c.id).where(self._claimable()).limit(1)).first() is None:
                return None
        with self._database.write() as connection:
            found = connection.execute(
                select(jobs.c.id, jobs.c.lease_token, jobs.c.attempts, jobs.c.started_at)
                .where(self._claimable())
                .order_by(jobs.c.id)
                .limit(1)
                .with_for_update(skip_locked=True)
            ).first()
            if found is None:
                return None
            job_id, now = JobId(found.id), self._clock()
            _change(
                connection,
                job_id,
                status=JobState.RUNNING,
                stage=JobStage.PREPARING,
                lease_owner=owner[:128],
                lease_token=found.lease_token + 1,
                lease_expires_at=now + self._lease_seconds,
                attempts=found.attempts + 1,
                started_at=found.started_at if found.started_at is not None else now,
            )
            message = "Fine-tuning job started." if found.attempts == 0 else "Fine-tuning job taken up again."
            events.add_message(connection, job_id, message)
            return LeasedJob(_read(connection, job_id), Lease(job_id, owner, found.lease_token + 1))

    def heartbeat(self, lease: Lease) -> bool:
        """Renew the lease; whether somebody has asked to cancel the job. Raises LeaseLost."""
        with self._held(lease) as connection:
            requested = select(jobs.c.cancel_requested).where(jobs.c.id == lease.job_id)
            return bool(connection.execute(requested).scalar_one())

    def set_stage(self, lease: Lease, stage: JobStage) -> None:
        """Say what the job is doing now. Raises LeaseLost."""
        with self._held(lease) as connection:
            _change(connection, lease.job_id, stage=stage)

    def set_dataset(
        self,
        lease: Lease,
        dataset_id: DatasetId,
        hyperparameters: Mapping[str, float | int | str | bool | None],
    ) -> None:
        """Note what the job trains on, and with which concrete hyperparameters. Raises LeaseLost."""
        with self._held(lease) as connection:
            _change(connection, lease.job_id, dataset_id=dataset_id, hyperparameters=dict(hyperparameters))

    def progress(self, lease: Lease, progress: Progress) -> None:
        """Note a step, as the job's present state and as a metrics event. Raises LeaseLost."""
        left = progress.seconds_left
        with self._held(lease) as connection:
            _change(
                connection,
                lease.job_id,
                progress=asdict(progress),
                estimated_finish=self._clock() + left if left is not None else None,
            )
            events.add_metrics(connection, lease.job_id, progress)

    def add_event(
        self, lease: Lease, message: str, level: Level = "info", data: Mapping[str, Any] | None = None
    ) -> None:
        """Tell the job's owner something. Raises LeaseLost."""
        with self._held(lease) as connection:
            events.add_message(
                connection, lease.job_id, message, level, dict(data) if data is not None else None
            )

    def add_checkpoint(self, lease: Lease, step: int, metrics: Mapping[str, float]) -> None:
        """Note a step from which training can go on. Raises LeaseLost."""
        with self._held(lease) as connection:
            events.add_checkpoint(connection, lease.job_id, step, dict(metrics))

    def finish(self, lease: Lease, outcome: Outcome) -> Job:
        """End the job; its last event says how. Raises LeaseLost."""
        with self._held(lease) as connection:
            self._end(connection, _read(connection, lease.job_id), outcome)
            return _read(connection, lease.job_id)

    def requeue(self, lease: Lease, message: str) -> None:
        """Give the job back to be claimed again at once, by this or another trainer. Raises LeaseLost."""
        with self._held(lease) as connection:
            _change(
                connection,
                lease.job_id,
                status=JobState.QUEUED,
                stage=None,
                lease_owner=None,
                lease_expires_at=None,
                estimated_finish=None,
            )
            events.add_message(connection, lease.job_id, message, "warn")

    # --- inside

    def _claimable(self) -> ColumnElement[bool]:
        is_silent = and_(jobs.c.status == JobState.RUNNING, jobs.c.lease_expires_at < self._clock())
        return or_(jobs.c.status == JobState.QUEUED, is_silent)

    @contextmanager
    def _held(self, lease: Lease) -> Iterator[Connection]:
        """A transaction of the lease's holder; it renews the lease, and locks the job's row until it ends."""
        with self._database.write() as connection:
            renewed = connection.execute(
                update(jobs)
                .where(
                    jobs.c.id == lease.job_id,
                    jobs.c.lease_token == lease.token,
                    jobs.c.status == JobState.RUNNING,
                )
                .values(lease_expires_at=self._clock() + self._lease_seconds)
            )
            if renewed.rowcount != 1:
                raise LeaseLost(f"{lease.owner} no longer holds the lease of {lease.job_id}.")
            yield connection

    def _end(self, connection: Connection, job: Job, outcome: Outcome) -> None:
        assert may_follow(job.status, outcome.state), f"{job.status} -> {outcome.state}"
        result: dict[str, Any] = {}
        if isinstance(outcome, Succeeded):
            result = {
                "version_id": outcome.version_id,
                "fine_tuned_model": outcome.fine_tuned_model,
                "trained_tokens": outcome.trained_tokens,
                "metrics": outcome.metrics,
            }
        elif isinstance(outcome, Failed):
            result = {"error": asdict(outcome.error)}
        _change(
            connection,
            job.job_id,
            status=outcome.state,
            stage=None,
            finished_at=self._clock(),
            estimated_finish=None,
            lease_owner=None,
            lease_expires_at=None,
            **result,
        )
        events.add_message(connection, job.job_id, outcome.message, outcome.level, result.get("metrics"))


def _change(connection: Connection, job_id: JobId, **values: Any) -> None:
    connection.execute(update(jobs).where(jobs.c.id == job_id).values(**values))


def _read(connection: Connection, job_id: JobId) -> Job:
    return rows.job(connection.execute(select(jobs).where(jobs.c.id == job_id)).one())


def _read_of(connection: Connection, project_id: ProjectId, job_id: str, *, lock: bool = False) -> Job:
    query = select(jobs).where(jobs.c.id == job_id, jobs.c.project_id == project_id)
    row = connection.execute(query.with_for_update() if lock else query).first()
    if row is None:
        raise NotFound(f"There is no fine-tuning job {job_id[:80]!r} in this project.")
    return rows.job(row)
