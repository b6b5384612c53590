"""Feedback: what people and programs say of a stored completion. Corrections become training data."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Row, insert, select

from finetune.jobs.job import Page
from loraway.database import Database
from loraway.errors import NotFound
from loraway.ids import FEEDBACK, FeedbackId, ProjectId, new_id
from loraway.schema import completions, feedback


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that an assistant could have given."""

    content: str
    role: str = "assistant"


@dataclass(frozen=True, slots=True)
class Preference:
    """Of two answers to the same messages, the better and the worse."""

    preferred: Answer
    non_preferred: Answer


@dataclass(frozen=True, slots=True)
class Judgement:
    """What feedback says; at least one field is given."""

    score: float | None = None
    label: str | None = None
    #: What the assistant should have answered.
    correction: Answer | None = None
    preference: Preference | None = None
    comment: str | None = None

    @property
    def is_empty(self) -> bool:
        return all(value is None for value in asdict(self).values())


@dataclass(frozen=True, slots=True)
class Feedback:
    """A judgement about a completion."""

    feedback_id: FeedbackId
    completion_id: str
    judgement: Judgement
    created_at: float


class FeedbackStore:
    """The only writer of `feedback`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, project_id: ProjectId, completion_id: str, judgement: Judgement) -> Feedback:
        """Note a judgement about one of the project's completions. Raises NotFound."""
        given = Feedback(FeedbackId(new_id(FEEDBACK)), completion_id, judgement, time.time())
        mine = (completions.c.id == completion_id) & (completions.c.project_id == project_id)
        with self._database.write() as connection:
            if connection.execute(select(completions.c.id).where(mine)).first() is None:
                raise NotFound(
                    f"There is no stored completion {completion_id[:80]!r} in this project; only stored ones "
                    "('store': true) take feedback.",
                    param="completion_id",
                )
            connection.execute(
                insert(feedback).values(
                    id=given.feedback_id,
                    project_id=project_id,
                    completion_id=completion_id,
                    created_at=given.created_at,
                    **{name: value for name, value in asdict(judgement).items() if value is not None},
                )
            )
        return given

    def list(
        self,
        project_id: ProjectId,
        *,
        completion_id: str | None = None,
        label: str | None = None,
        after: str | None = None,
        limit: int = 20,
        is_ascending: bool = False,
    ) -> Page[Feedback]:
        """The project's feedback, newest first unless asked for the other way round."""
        query = select(feedback).where(feedback.c.project_id == project_id)
        if completion_id is not None:
            query = query.where(feedback.c.completion_id == completion_id)
        if label is not None:
            query = query.where(feedback.c.label == label)
        if after is not None:
            query = query.where(feedback.c.id > after if is_ascending else feedback.c.id < after)
        query = query.order_by(feedback.c.id if is_ascending else feedback.c.id.desc())
        with self._database.read() as connection:
            rows = connection.execute(query.limit(limit + 1)).all()
        return Page([_feedback(row) for row in rows[:limit]], has_more=len(rows) > limit)


def _feedback(row: Row[Any]) -> Feedback:
    return Feedback(
        feedback_id=FeedbackId(row.id),
        completion_id=row.completion_id,
        judgement=Judgement(
            score=row.score,
            label=row.label,
            correction=_answer(row.correction) if row.correction is not None else None,
            preference=_preference(row.preference) if row.preference is not None else None,
            comment=row.comment,
        ),
        created_at=row.created_at,
    )


def _answer(stored: dict[str, Any]) -> Answer:
    return Answer(content=stored["content"], role=stored["role"])


def _preference(stored: dict[str, Any]) -> Preference:
    return Preference(_answer(stored["preferred"]), _answer(stored["non_preferred"]))
