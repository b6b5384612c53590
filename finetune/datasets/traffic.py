"""Examples out of logged completions and the feedback on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import Connection, Row, Select, exists, or_, select

from finetune.datasets.example import Example, make_example
from finetune.datasets.selection import LeftOut
from finetune.file_validation import InvalidExample, check_example
from finetune.jobs.request import TrafficSelection
from loraway.database import Database
from loraway.ids import ProjectId
from loraway.schema import completion_metadata, completions, feedback

_BATCH = 500


@dataclass(frozen=True, slots=True)
class LoggedCompletion:
    """A completion with what was said about it."""

    completion_id: str
    request: Mapping[str, Any]
    response: Mapping[str, Any]
    #: Scores given, oldest first.
    scores: tuple[float, ...] = ()
    #: The better answer; the latest one given.
    correction: Mapping[str, Any] | None = None

    @property
    def mean_score(self) -> float | None:
        return sum(self.scores) / len(self.scores) if self.scores else None


def example_of(completion: LoggedCompletion, min_score: float | None = None) -> Example | LeftOut:
    """What can be learnt from a completion: its correction if it has one, else its answer if it was good."""
    answer = completion.correction
    if answer is None:
        score = completion.mean_score
        if score is not None and score < 0:
            return LeftOut.NEGATIVE_SCORE
        if min_score is not None and (score is None or score < min_score):
            return LeftOut.LOW_SCORE
        choices = completion.response.get("choices") or [{}]
        if choices[0].get("finish_reason") == "length":
            return LeftOut.TRUNCATED
        answer = choices[0].get("message")
    messages = completion.request.get("messages")
    if answer is None or not isinstance(messages, list):
        return LeftOut.UNUSABLE
    chat = [_without_weight(message) for message in (*messages, {**answer, "role": "assistant"})]
    tools = completion.request.get("tools")
    try:
        check_example({"messages": chat, "tools": tools})
    except InvalidExample:
        return LeftOut.UNUSABLE
    is_corrected = completion.correction is not None
    return make_example(chat, tools, is_corrected=is_corrected, completion_id=completion.completion_id)


def _without_weight(message: Any) -> Any:
    """Weights are for training files; in traffic they are whatever a client made up."""
    if not isinstance(message, dict):
        return message
    return {name: value for name, value in message.items() if name != "weight"}


def traffic_examples(
    database: Database, project_id: ProjectId, wanted: TrafficSelection
) -> Iterator[Example | LeftOut]:
    """One for each completion that meets the conditions, oldest first; read in batches."""
    query = _matching(project_id, wanted).order_by(completions.c.id).limit(_BATCH)
    last = ""
    while True:
        with database.read() as connection:
            rows = connection.execute(query.where(completions.c.id > last)).all()
            batch = _with_feedback(connection, rows)
        for completion in batch:
            yield example_of(completion, wanted.min_score)
        if len(rows) < _BATCH:
            return
        last = rows[-1].id


def _matching(project_id: ProjectId, wanted: TrafficSelection) -> Select[Any]:
    query = select(completions.c.id, completions.c.request, completions.c.response).where(
        completions.c.project_id == project_id
    )
    for key, value in wanted.metadata.items():
        query = query.where(
            exists().where(
                completion_metadata.c.completion_id == completions.c.id,
                completion_metadata.c.key == key,
                completion_metadata.c.value == value,
            )
        )
    if wanted.model is not None:
        query = query.where(
            or_(
                completions.c.model == wanted.model,
                completions.c.base_model == wanted.model,
                completions.c.model.startswith(f"{wanted.model}@", autoescape=True),
            )
        )
    if wanted.after is not None:
        query = query.where(completions.c.created_at >= wanted.after)
    if wanted.before is not None:
        query = query.where(completions.c.created_at < wanted.before)
    return query


def _with_feedback(connection: Connection, rows: Sequence[Row[Any]]) -> list[LoggedCompletion]:
    scores: dict[str, list[float]] = {}
    corrections: dict[str, Mapping[str, Any]] = {}
    given = connection.execute(
        select(feedback.c.completion_id, feedback.c.score, feedback.c.correction)
        .where(feedback.c.completion_id.in_([row.id for row in rows]))
        .order_by(feedback.c.id)
    )
    for said in given:
        if said.score is not None:
            scores.setdefault(said.completion_id, []).append(said.score)
        if said.correction is not None:
            corrections[said.completion_id] = said.correction
    return [
        LoggedCompletion(
            completion_id=row.id,
            request=orjson.loads(row.request),
            response=orjson.loads(row.response),
            scores=tuple(scores.get(row.id, ())),
            correction=corrections.get(row.id),
        )
        for row in rows
    ]
