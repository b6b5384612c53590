"""Stored completions: read page by page, their metadata changed, deleted. `gateway.traffic` writes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import Connection, Row, Select, delete, exists, insert, or_, select, update

from finetune.jobs.job import Page
from loraway.database import Database
from loraway.errors import NotFound
from loraway.ids import ProjectId
from loraway.schema import completion_metadata, completions


@dataclass(frozen=True, slots=True)
class StoredCompletion:
    """One logged request and its response."""

    completion_id: str
    request_id: str
    #: What answered: a base model or a version.
    model: str
    metadata: dict[str, str]
    created_at: float
    #: As they went over the wire.
    request: dict[str, Any]
    response: dict[str, Any]

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The messages that were sent."""
        sent = self.request.get("messages")
        return [message for message in sent if isinstance(message, dict)] if isinstance(sent, list) else []


class CompletionStore:
    """Reads the traffic log for the project it belongs to; changes metadata, deletes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, project_id: ProjectId, completion_id: str) -> StoredCompletion:
        """The project's completion. Raises NotFound."""
        with self._database.read() as connection:
            return _read(connection, project_id, completion_id)

    def list(
        self,
        project_id: ProjectId,
        *,
        after: str | None = None,
        limit: int = 20,
        is_ascending: bool = True,
        model: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Page[StoredCompletion]:
        """The project's completions in the order in which they began.

        `model`: a base model, a version, or an adapter's name for any version of it. `metadata`: pairs that
        the completion must have.
        """
        query = select(completions).where(completions.c.project_id == project_id)
        query = _matching(query, model, metadata or {})
        if after is not None:
            query = query.where(completions.c.id > after if is_ascending else completions.c.id < after)
        query = query.order_by(completions.c.id if is_ascending else completions.c.id.desc())
        with self._database.read() as connection:
            rows = connection.execute(query.limit(limit + 1)).all()
        return Page([_completion(row) for row in rows[:limit]], has_more=len(rows) > limit)

    def set_metadata(
        self, project_id: ProjectId, completion_id: str, metadata: Mapping[str, str]
    ) -> StoredCompletion:
        """Replace the completion's metadata, checked already. Raises NotFound."""
        with self._database.write() as connection:
            _read(connection, project_id, completion_id)
            pairs = completion_metadata
            connection.execute(delete(pairs).where(pairs.c.completion_id == completion_id))
            rows = [{"completion_id": completion_id, "key": k, "value": v} for k, v in metadata.items()]
            if rows:
                connection.execute(insert(pairs), rows)
            mine = completions.c.id == completion_id
            connection.execute(update(completions).where(mine).values(metadata=dict(metadata)))
            return _read(connection, project_id, completion_id)

    def delete(self, project_id: ProjectId, completion_id: str) -> None:
        """Forget a completion and the feedback about it. Raises NotFound."""
        mine = (completions.c.id == completion_id) & (completions.c.project_id == project_id)
        with self._database.write() as connection:
            if connection.execute(delete(completions).where(mine)).rowcount == 0:
                raise _missing(completion_id)


def _matching(query: Select[Any], model: str | None, metadata: Mapping[str, str]) -> Select[Any]:
    if model is not None:
        column = completions.c.model
        query = query.where(or_(column == model, column.startswith(f"{model}@", autoescape=True)))
    pairs = completion_metadata
    for key, value in metadata.items():
        query = query.where(
            exists().where(
                pairs.c.completion_id == completions.c.id, pairs.c.key == key, pairs.c.value == value
            )
        )
    return query


def _read(connection: Connection, project_id: ProjectId, completion_id: str) -> StoredCompletion:
    mine = (completions.c.id == completion_id) & (completions.c.project_id == project_id)
    row = connection.execute(select(completions).where(mine)).first()
    if row is None:
        raise _missing(completion_id)
    return _completion(row)


def _missing(completion_id: str) -> NotFound:
    return NotFound(
        f"There is no stored completion {completion_id[:80]!r} in this project.", param="completion_id"
    )


def _completion(row: Row[Any]) -> StoredCompletion:
    return StoredCompletion(
        completion_id=row.id,
        request_id=row.request_id,
        model=row.model,
        metadata=row.metadata or {},
        created_at=row.created_at,
        request=orjson.loads(row.request),
        response=orjson.loads(row.response),
    )
