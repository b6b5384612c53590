"""Rollout rows: asked for by the trainer or a client, run and ended by the controller."""

from __future__ import annotations

import time

from sqlalchemy import insert, select, update

from adapters_store import rows
from adapters_store.version import Rollout, RolloutState
from loraway.database import Database
from loraway.errors import LorawayError, NotFound, error_body
from loraway.ids import ROLLOUT, ProjectId, RolloutId, VersionId, new_id
from loraway.schema import rollouts

_OPEN = (RolloutState.PENDING, RolloutState.RUNNING)


class Rollouts:
    """The table `rollouts`; `Registry` is its public face."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def request(self, project_id: ProjectId, alias: str, version_id: VersionId) -> RolloutId:
        with self._database.write() as connection:
            open_one = connection.execute(
                select(rollouts.c.id).where(
                    rollouts.c.project_id == project_id,
                    rollouts.c.alias == alias,
                    rollouts.c.version_id == version_id,
                    rollouts.c.state.in_(_OPEN),
                )
            ).scalar()
            if open_one is not None:
                return RolloutId(open_one)
            rollout_id = RolloutId(new_id(ROLLOUT))
            connection.execute(
                insert(rollouts).values(
                    id=rollout_id,
                    project_id=project_id,
                    alias=alias,
                    version_id=version_id,
                    state=RolloutState.PENDING,
                    created_at=time.time(),
                )
            )
            return rollout_id

    def get(self, rollout_id: RolloutId) -> Rollout:
        with self._database.read() as connection:
            row = connection.execute(select(rollouts).where(rollouts.c.id == rollout_id)).first()
        if row is None:
            raise NotFound(f"There is no rollout {rollout_id[:80]!r}.")
        return rows.rollout(row)

    def open(self) -> list[Rollout]:
        with self._database.read() as connection:
            found = connection.execute(
                select(rollouts).where(rollouts.c.state.in_(_OPEN)).order_by(rollouts.c.id)
            )
            return [rows.rollout(row) for row in found]

    def start(self, rollout_id: RolloutId) -> None:
        with self._database.write() as connection:
            connection.execute(
                update(rollouts)
                .where(rollouts.c.id == rollout_id, rollouts.c.state == RolloutState.PENDING)
                .values(state=RolloutState.RUNNING)
            )

    def finish(
        self,
        rollout_id: RolloutId,
        state: RolloutState,
        error: LorawayError | None,
        report: rows.Report | None,
    ) -> None:
        with self._database.write() as connection:
            connection.execute(
                update(rollouts)
                .where(rollouts.c.id == rollout_id, rollouts.c.state.in_(_OPEN))
                .values(
                    state=state,
                    error=error_body(error)["error"] if error is not None else None,
                    report=report,
                    finished_at=time.time(),
                )
            )
