"""The replicas as the controller sees them: their health, and what is loaded and proved on each.

A residency counts only for the engine process that it was proved on. When a replica has lost an adapter, by
a restart or a silent eviction, the reading that shows it deletes the residency before anything else happens.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from adapters_store.version import Version
from engines.engine import Engine, EngineLoad
from engines.fleet_rows import FleetRows, ReplicaState, Residency
from engines.plan import Wanted
from loraway.errors import EngineSilent, EngineUnreachable, LorawayError
from loraway.ids import ReplicaId, VersionId

_log = logging.getLogger(__name__)

#: Readings without an answer after which a replica is unhealthy; a refused connection needs no second.
_SILENT_READINGS = 2
#: How often unchanged load figures are written all the same.
_SEEN_SECONDS = 5.0


@dataclass(slots=True, eq=False)
class Replica:
    """One replica. `Fleet` writes its state; who changes what is loaded there holds `lock`."""

    replica_id: ReplicaId
    engine: Engine
    base_model: str
    slots: int
    state: ReplicaState = ReplicaState.STARTING
    error: str | None = None
    #: Grows whenever the replica has lost an adapter or its process: what was seen before counts no more.
    incarnation: int = 0
    #: Grows with each load and unload, so that a reading begun before it is not believed.
    edits: int = 0
    #: Engine name and path of what it holds, as last read.
    loaded: dict[str, str] = field(default_factory=dict)
    #: Loaded and proved in this incarnation; the same as its rows.
    residencies: dict[VersionId, Residency] = field(default_factory=dict)
    #: Unloads under way, by engine name; SGLang's wait for running requests.
    unloads: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    #: Set when there is something to do for the reconciler.
    has_news: asyncio.Event = field(default_factory=asyncio.Event)
    _rows_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _silent_readings: int = 0
    _load: EngineLoad | None = None
    _load_written_at: float = 0.0

    @property
    def is_ready(self) -> bool:
        return self.state is ReplicaState.READY

    @property
    def takes_adapters(self) -> bool:
        return self.slots > 0


class Fleet:
    """Owns the replicas and their rows; the only writer of both."""

    def __init__(self, rows: FleetRows) -> None:
        self.rows = rows
        self.replicas: dict[ReplicaId, Replica] = {}
        #: Rollouts under way, by engine name.
        self._held: Counter[str | None] = Counter()
        #: By base model: the revision it was read at, and what aliases point at.
        self._wanted: dict[str, tuple[int, dict[VersionId, Wanted]]] = {}

    async def enrol(self, engine: Engine, base_model: str, slots: int) -> Replica:
        """Take a replica in, with what was recorded of it; the first reading tells what still holds."""
        replica_id = await asyncio.to_thread(self.rows.enrol, engine.url, engine.kind, base_model, slots)
        replica = Replica(replica_id, engine, base_model, slots)
        recorded = await asyncio.to_thread(self.rows.residencies_of, replica_id)
        replica.residencies = {residency.version_id: residency for residency in recorded}
        self.replicas[replica_id] = replica
        return replica

    async def retire_others(self) -> None:
        """Replicas that are recorded but not enrolled take no more requests."""
        await asyncio.to_thread(self.rows.retire_others, list(self.replicas))

    def ready(self, base_model: str) -> list[Replica]:
        """Those that can take adapters of this base model now."""
        return [
            replica
            for replica in self.replicas.values()
            if replica.is_ready and replica.takes_adapters and replica.base_model == base_model
        ]

    async def wanted(self, base_model: str) -> dict[VersionId, Wanted]:
        """What aliases point at, most important first; read again when the routing revision has moved."""
        revision = await asyncio.to_thread(self.rows.revision)
        known = self._wanted.get(base_model)
        if known is None or known[0] != revision:
            known = revision, await asyncio.to_thread(self.rows.aliased_versions, base_model)
            self._wanted[base_model] = known
        return known[1]

    @contextmanager
    def hold(self, engine_name: str | None) -> Iterator[None]:
        """While held, a version is unloaded nowhere to make room for another; None holds nothing."""
        self._held[engine_name] += 1
        try:
            yield
        finally:
            self._held[engine_name] -= 1

    def is_held(self, engine_name: str) -> bool:
        return self._held[engine_name] > 0

    async def observe(self, replica: Replica) -> None:
        """Read the replica and record what has changed."""
        known, edits = dict(replica.residencies), replica.edits
        try:
            sight = await _read(replica.engine)
        except EngineSilent as error:
            replica._silent_readings += 1
            if replica._silent_readings >= _SILENT_READINGS:
                await self._record(replica, ReplicaState.UNHEALTHY, error.message, None, {})
            return
        except EngineUnreachable as error:
            replica.loaded = {}
            await self._record(replica, self._down(replica), error.message, None, replica.residencies)
            return
        except LorawayError as error:
            await self._record(replica, ReplicaState.UNHEALTHY, error.message, None, {})
            return
        replica._silent_readings = 0
        if sight is None:
            await self._record(replica, self._down(replica), "It says that it cannot serve.", None, {})
            return
        if replica.edits == edits:
            replica.loaded = sight.loaded
        lost = {key: seen for key, seen in known.items() if seen.engine_name not in sight.loaded}
        await self._record(replica, ReplicaState.READY, None, sight.load, lost)

    async def record_loaded(self, replica: Replica, version: Version, incarnation: int) -> None:
        """The version was proved on this replica, in this incarnation, and may serve there.

        Raises `EngineUnreachable` when the replica has restarted meanwhile.
        """
        async with replica._rows_lock:
            if replica.incarnation != incarnation:
                raise EngineUnreachable(f"The engine at {replica.engine.url} has restarted meanwhile.")
            await asyncio.to_thread(self.rows.record_loaded, replica.replica_id, version.version_id)
            replica.residencies[version.version_id] = Residency(
                version.version_id, version.engine_name, time.time()
            )

    async def record_failed(self, replica: Replica, version: Version, error: LorawayError) -> None:
        """The version was refused by this replica, or failed its proof there; it does not serve there."""
        async with replica._rows_lock:
            replica.residencies.pop(version.version_id, None)
            await asyncio.to_thread(
                self.rows.record_failed, replica.replica_id, version.version_id, error.message
            )

    async def record_used(self, replica: Replica, version_id: VersionId) -> None:
        """A request asks for this version there."""
        if (residency := replica.residencies.get(version_id)) is None:
            return
        residency.used_at = time.time()
        await asyncio.to_thread(self.rows.record_used, replica.replica_id, version_id)

    async def forget(self, replica: Replica, engine_name: str) -> bool:
        """Send no more requests for this adapter there; whether any were sent before."""
        async with replica._rows_lock:
            gone = [key for key, seen in replica.residencies.items() if seen.engine_name == engine_name]
            if gone:
                await asyncio.to_thread(self.rows.forget, replica.replica_id, gone)
            for version_id in gone:
                del replica.residencies[version_id]
            return bool(gone)

    @staticmethod
    def _down(replica: Replica) -> ReplicaState:
        """A replica that has never answered is starting; one that has is unhealthy."""
        return ReplicaState.STARTING if replica.state is ReplicaState.STARTING else ReplicaState.UNHEALTHY

    async def _record(
        self,
        replica: Replica,
        state: ReplicaState,
        error: str | None,
        load: EngineLoad | None,
        lost: dict[VersionId, Residency],
    ) -> None:
        async with replica._rows_lock:
            # A version that was loaded anew during the reading is another residency, and not lost.
            gone = [key for key, seen in lost.items() if replica.residencies.get(key) is seen]
            if gone or (state is not ReplicaState.READY and replica.is_ready):
                replica.incarnation += 1
            if gone or (state, error) != (replica.state, replica.error):
                _log.info(
                    "replica %s: %s%s%s",
                    replica.engine.url,
                    state,
                    f" ({error})" if error else "",
                    f", lost {len(gone)} adapters" if gone else "",
                )
                await asyncio.to_thread(self.rows.record_state, replica.replica_id, state, error, load, gone)
                replica.state, replica.error = state, error
                for version_id in gone:
                    del replica.residencies[version_id]
                replica.has_news.set()
            elif load is not None:
                await self._record_load(replica, load)

    async def _record_load(self, replica: Replica, load: EngineLoad) -> None:
        used = [
            residency
            for residency in replica.residencies.values()
            if residency.engine_name in load.running_adapters
        ]
        now = time.time()
        for residency in used:
            residency.used_at = now
        if load == replica._load and now - replica._load_written_at < _SEEN_SECONDS:
            return
        replica._load, replica._load_written_at = load, now
        await asyncio.to_thread(
            self.rows.record_load, replica.replica_id, load, [residency.version_id for residency in used]
        )


@dataclass(frozen=True, slots=True)
class _Sight:
    """One reading of a healthy engine."""

    loaded: dict[str, str]
    load: EngineLoad


async def _read(engine: Engine) -> _Sight | None:
    """None when the engine says that it cannot serve."""
    if not await engine.is_healthy():
        return None
    return _Sight(await engine.loaded_adapters(), await engine.read_load())
