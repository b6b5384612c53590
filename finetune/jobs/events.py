"""Events and checkpoints of jobs: written inside the store's transactions, read page by page."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypeVar

from sqlalchemy import Connection, Row, Select, insert, select

from finetune.jobs import rows
from finetune.jobs.job import JobCheckpoint, JobEvent, Level, Page, Progress
from loraway.database import insert_once
from loraway.ids import CHECKPOINT, EVENT, JobId, new_id
from loraway.schema import job_checkpoints, job_events

T = TypeVar("T")


def add_message(
    connection: Connection, job_id: JobId, message: str, level: Level = "info", extra: Any = None
) -> None:
    """An event for people to read."""
    _add(connection, job_id, level, "message", message, extra)


def add_metrics(connection: Connection, job_id: JobId, progress: Progress) -> None:
    """A step's figures, as an event that programs read."""
    message = f"Step {progress.step}/{progress.total_steps}: training loss={progress.loss:.4f}"
    figures = {name: value for name, value in asdict(progress).items() if value is not None}
    _add(connection, job_id, "info", "metrics", message, {**figures, "train_loss": progress.loss})


def add_checkpoint(connection: Connection, job_id: JobId, step: int, metrics: dict[str, float]) -> None:
    """A step to go on from; reported again after a resume it stays as it was."""
    insert_once(
        connection,
        job_checkpoints,
        id=new_id(CHECKPOINT),
        job_id=job_id,
        step=step,
        metrics=metrics,
        created_at=time.time(),
    )


def list_events(connection: Connection, job_id: JobId, after: str | None, limit: int) -> Page[JobEvent]:
    """Newest first."""
    query = select(job_events).where(job_events.c.job_id == job_id)
    return newest_first(connection, query, job_events.c.id, after, limit, rows.event)


def list_checkpoints(
    connection: Connection, job_id: JobId, after: str | None, limit: int
) -> Page[JobCheckpoint]:
    """Newest first."""
    query = select(job_checkpoints).where(job_checkpoints.c.job_id == job_id)
    return newest_first(connection, query, job_checkpoints.c.id, after, limit, rows.checkpoint)


def newest_first(
    connection: Connection,
    query: Select[Any],
    id_column: Any,
    after: str | None,
    limit: int,
    make: Callable[[Row[Any]], T],
) -> Page[T]:
    """One page of a query by time-ordered id, newest first, from the one `after` was the end of."""
    if after is not None:
        query = query.where(id_column < after)
    found = connection.execute(query.order_by(id_column.desc()).limit(limit + 1)).all()
    return Page([make(row) for row in found[:limit]], has_more=len(found) > limit)


def _add(connection: Connection, job_id: JobId, level: Level, kind: str, message: str, extra: Any) -> None:
    connection.execute(
        insert(job_events).values(
            id=new_id(EVENT),
            job_id=job_id,
            level=level,
            type=kind,
            message=message.replace("\0", ""),
            data=extra,
            created_at=time.time(),
        )
    )
