"""A hot swap: the version on every replica first, proved on each, and only then the alias.

All or none: when a replica refuses the version or serves something else, the others give it back and the
alias stays. A replica that crashes meanwhile does not fail the rollout: the reconciler loads the version
there before adapter traffic returns to it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from adapters_store.registry import Registry
from adapters_store.version import Rollout, RolloutState, Version, VersionState
from engines.fleet import Fleet, Replica
from engines.loader import Loader, LoadReport
from engines.plan import Importance
from loraway.errors import Conflict, EngineUnreachable, LorawayError, NoReplicaReady
from loraway.ids import ProjectId, RolloutId

_log = logging.getLogger(__name__)

_UNDO_WAIT_SECONDS = 10.0
_POLL_SECONDS = 0.05
_ATTEMPTS = 3
_FAULT_PAUSE_SECONDS = 5.0


class Rollouts:
    """Runs what the registry has open: for one alias in the order asked for, for different ones at once."""

    def __init__(
        self,
        fleet: Fleet,
        loader: Loader,
        registry: Registry,
        tasks: asyncio.TaskGroup,
        ready_seconds: float,
        on_end: Callable[[], None],
    ) -> None:
        self._fleet = fleet
        self._loader = loader
        self._registry = registry
        self._tasks = tasks
        #: How long a rollout waits for a replica to become ready.
        self._ready_seconds = ready_seconds
        #: Called when a rollout has ended: another of the same alias may wait.
        self._on_end = on_end
        self._under_way: dict[tuple[ProjectId, str], RolloutId] = {}

    async def start_open(self) -> None:
        """Start those that nothing else of their alias stands before."""
        for rollout in await asyncio.to_thread(self._registry.pending_rollouts):
            name = rollout.project_id, rollout.alias
            if name not in self._under_way:
                self._under_way[name] = rollout.rollout_id
                self._tasks.create_task(self._run(rollout))

    async def _run(self, rollout: Rollout) -> None:
        try:
            await self._conclude(rollout)
        except Exception:  # noqa: BLE001 - the task's outermost edge: one fault must not end all
            _log.exception("rollout %s of %s is open still", rollout.rollout_id, rollout.alias)
            await asyncio.sleep(_FAULT_PAUSE_SECONDS)
        finally:
            del self._under_way[rollout.project_id, rollout.alias]
            self._on_end()

    async def _conclude(self, rollout: Rollout) -> None:
        """Run one rollout to its end and record it."""
        finish = self._registry.finish_rollout
        try:
            report = await self._roll_out(rollout)
        except LorawayError as error:
            _log.warning("rollout of %s to %s: %s", rollout.version_id, rollout.alias, error.message)
            await asyncio.to_thread(finish, rollout.rollout_id, RolloutState.FAILED, error)
        else:
            await asyncio.to_thread(finish, rollout.rollout_id, RolloutState.DONE, None, report)

    async def _roll_out(self, rollout: Rollout) -> dict[str, Any]:
        """Load, prove, move the alias; returns the report. Raises why the alias was not moved."""
        started = time.perf_counter()
        await asyncio.to_thread(self._registry.start_rollout, rollout.rollout_id)
        version = await asyncio.to_thread(self._registry.version, rollout.version_id)
        if version.state is VersionState.RETIRED:
            raise Conflict(f"{version.name} is retired and cannot be rolled out.")
        with self._fleet.hold(version.engine_name), self._fleet.hold(await self._served_now(rollout)):
            reports = await self._bring_to_all(version)
            await asyncio.to_thread(
                self._registry.move_alias, rollout.project_id, rollout.alias, version.version_id, "rollout"
            )
        seconds = time.perf_counter() - started
        _log.info("%s is %s now (%.2f s)", rollout.alias, version.name, seconds)
        return {"seconds": round(seconds, 4), "replicas": [_as_json(report) for report in reports]}

    async def _served_now(self, rollout: Rollout) -> str | None:
        """Engine name of what the alias points at: it serves until the alias moves, and makes no room."""
        serving = await asyncio.to_thread(self._registry.find, rollout.project_id, rollout.alias)
        return serving.engine_name if serving is not None else None

    async def _bring_to_all(self, version: Version) -> list[LoadReport]:
        """On every ready replica or on none; again when one of them crashed meanwhile."""
        fresh: set[Replica] = set()
        for attempt in range(1, _ATTEMPTS + 1):
            replicas = await self._wait_until_ready(version.base_model)
            outcomes = await asyncio.gather(*(self._try(replica, version) for replica in replicas))
            reports = [outcome for outcome in outcomes if isinstance(outcome, LoadReport)]
            failures = [outcome for outcome in outcomes if isinstance(outcome, _Failure)]
            fresh |= {report.replica for report in reports if not report.was_loaded}
            if not failures:
                return reports
            refusals = [failure for failure in failures if not failure.is_crash]
            if refusals or attempt == _ATTEMPTS:
                await self._undo(version, fresh)
                raise (refusals or failures)[0].error
        raise AssertionError("unreachable")

    async def _try(self, replica: Replica, version: Version) -> LoadReport | _Failure:
        # Proved already (a rollback, or a second attempt): one reference is enough to see that it still is.
        max_references = 1 if version.version_id in replica.residencies else None
        try:
            return await self._loader.bring(
                replica, version, Importance.TARGET, proves_again=True, max_references=max_references
            )
        except EngineUnreachable as error:
            await self._fleet.observe(replica)
            return _Failure(error, is_crash=True)
        except LorawayError as error:
            error.args = (f"{replica.replica_id} ({replica.engine.kind}): {error.message}",)
            return _Failure(error, is_crash=False)

    async def _undo(self, version: Version, fresh: Iterable[Replica]) -> None:
        """Unload the version where this rollout has loaded it."""
        names = [version.engine_name]
        undone = (self._loader.take_off(replica, names, _UNDO_WAIT_SECONDS) for replica in fresh)
        await asyncio.gather(*undone)

    async def _wait_until_ready(self, base_model: str) -> list[Replica]:
        deadline = time.monotonic() + self._ready_seconds
        while not (replicas := self._fleet.ready(base_model)):
            if time.monotonic() > deadline:
                raise NoReplicaReady(
                    f"No replica of {base_model} that takes adapters became ready in "
                    f"{self._ready_seconds:g} s."
                )
            await asyncio.sleep(_POLL_SECONDS)
        return replicas


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why a replica does not have the version; a crash is no verdict about the version."""

    error: LorawayError
    is_crash: bool


def _as_json(report: LoadReport) -> dict[str, Any]:
    proof = report.proof
    return {
        "replica_id": report.replica.replica_id,
        "engine": report.replica.engine.kind,
        "was_loaded": report.was_loaded,
        "load_seconds": round(report.load_seconds, 4),
        "proof_seconds": round(proof.seconds, 4) if proof is not None else None,
        "references": proof.references if proof is not None else 0,
        "tokens": proof.tokens if proof is not None else 0,
        "largest_difference": round(proof.largest_difference, 6) if proof is not None else None,
        "is_conclusive": proof.is_conclusive if proof is not None else False,
    }
