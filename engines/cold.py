"""Versions that no alias points at, or whose replica has restarted: loaded when a request asks for them."""

from __future__ import annotations

import asyncio
import logging

from adapters_store.registry import Registry
from adapters_store.version import Version, VersionState
from engines.fleet import Fleet, Replica
from engines.loader import Loader
from engines.plan import Importance, rendezvous_order
from loraway.errors import Conflict, LorawayError, NoReplicaReady
from loraway.ids import ReplicaId, VersionId

_log = logging.getLogger(__name__)

_REFERENCES = 1
_RETRY_SECONDS = 2


class ColdLoads:
    """Single flight: requests for one version that come together cause one load and share its outcome."""

    def __init__(self, fleet: Fleet, loader: Loader, registry: Registry, tasks: asyncio.TaskGroup) -> None:
        self._fleet = fleet
        self._loader = loader
        self._registry = registry
        self._tasks = tasks
        self._flights: dict[VersionId, asyncio.Future[list[ReplicaId]]] = {}

    async def ensure(self, version_id: VersionId) -> list[ReplicaId]:
        """Where the version is loaded and proved: at least one replica.

        Raises NotFound, Conflict (retired), `NoReplicaReady`, `AdapterNotLoaded`, `EngineRejected`, ...
        """
        flight = self._flights.get(version_id)
        if flight is None:
            flight = asyncio.get_running_loop().create_future()
            self._flights[version_id] = flight
            self._tasks.create_task(self._fly(version_id, flight))
        return await asyncio.shield(flight)  # a caller that goes away does not take the others' load along

    async def _fly(self, version_id: VersionId, flight: asyncio.Future[list[ReplicaId]]) -> None:
        try:
            flight.set_result(await self._load_somewhere(version_id))
        except LorawayError as error:
            flight.set_exception(error)
        except Exception:  # noqa: BLE001 - the task's outermost edge: one fault must not end the controller
            _log.exception("loading %s", version_id)
            flight.set_exception(LorawayError())
        finally:
            del self._flights[version_id]
            if not flight.done():
                flight.cancel()  # the controller stops
            elif not flight.cancelled():
                flight.exception()  # seen, even when every caller has gone

    async def _load_somewhere(self, version_id: VersionId) -> list[ReplicaId]:
        version = await asyncio.to_thread(self._registry.version, version_id)
        if version.state is VersionState.RETIRED:
            raise Conflict(f"{version.name} is retired and not loaded any more.")
        ready = self._fleet.ready(version.base_model)
        holders = [replica for replica in ready if version_id in replica.residencies]
        if holders:
            for replica in holders:
                await self._fleet.record_used(replica, version_id)
            return [replica.replica_id for replica in holders]
        return [(await self._place(version, ready)).replica_id]

    async def _place(self, version: Version, ready: list[Replica]) -> Replica:
        """Load it on the first replica, in the version's own order, that can take it."""
        wish = (await self._fleet.wanted(version.base_model)).get(version.version_id)
        importance = wish.importance if wish is not None else Importance.BY_NAME
        by_id = {replica.replica_id: replica for replica in ready}
        failure: LorawayError = NoReplicaReady(
            f"No replica of {version.base_model} that takes adapters is ready.",
            retry_after_seconds=_RETRY_SECONDS,
        )
        for replica_id in rendezvous_order(version.version_id, list(by_id)):
            replica = by_id[replica_id]
            try:
                await self._loader.bring(replica, version, importance, max_references=_REFERENCES)
            except LorawayError as error:
                failure = error
            else:
                return replica
        raise failure
