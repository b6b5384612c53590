"""Brings one version to one replica: makes room, loads, proves, and only then lets it serve."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from adapters_store.version import Version
from engines.fleet import Fleet, Replica
from engines.plan import Importance, Loaded, Plan, Wanted, plan_convergence, plan_room
from engines.proof import Proof, prove
from loraway.errors import AdapterNotLoaded, EngineMismatch, EngineUnreachable, LorawayError
from loraway.ids import VersionId

_log = logging.getLogger(__name__)

#: What the registry makes engine names like; anything else on a replica is somebody else's.
_OUR_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}@\d+\.[0-9a-z]{6}")
#: How long a load waits for the unload that makes its room.
_ROOM_SECONDS = 30.0
#: How long a converging replica waits for an unload that nobody waits for.
_UNHURRIED_SECONDS = 1.0
_RETRY_SECONDS = 5


@dataclass(frozen=True, slots=True)
class LoadReport:
    """How a version came to a replica."""

    replica: Replica
    #: It was loaded before, so that undoing the rollout must leave it.
    was_loaded: bool
    load_seconds: float
    proof: Proof | None


class Loader:
    """Loads and unloads; one change at a time on each replica.

    An unload that waits for running requests (SGLang) goes on as a task of `tasks`.
    """

    def __init__(
        self, fleet: Fleet, tasks: asyncio.TaskGroup, logprob_tolerance: float, grace_seconds: float
    ) -> None:
        self._fleet = fleet
        self._tasks = tasks
        self._tolerance = logprob_tolerance
        #: Until every gateway worker has read that a version is to be unloaded and sends nothing more to it.
        self._grace_seconds = grace_seconds

    async def bring(
        self,
        replica: Replica,
        version: Version,
        importance: Importance,
        *,
        is_asked_for: bool = True,
        proves_again: bool = False,
        max_references: int | None = None,
    ) -> LoadReport:
        """Have the version loaded and proved on the replica; quick when it is.

        `is_asked_for`: a request waits, so that a version as important may go. `proves_again`: also when it
        has been proved in this incarnation. Raises `AdapterNotLoaded` (no room), `EngineRejected`,
        `EngineMismatch` (then it is not loaded any more), `EngineUnreachable`.
        """
        async with replica.lock:
            was_proved = version.version_id in replica.residencies
            if was_proved and not proves_again:
                await self._fleet.record_used(replica, version.version_id)
                return LoadReport(replica, True, 0.0, None)
            incarnation = replica.incarnation
            await self._wait_for_unload(replica, version.engine_name)
            await self._read_loaded(replica)
            was_loaded = version.engine_name in replica.loaded
            if not was_loaded:
                was_proved = False
                await self._fleet.forget(replica, version.engine_name)
                wanted = Wanted(version.engine_name, importance)
                await self._make_room(replica, wanted, is_asked_for=is_asked_for)
            started = time.perf_counter()
            try:
                await self._load(replica, version)
                load_seconds = time.perf_counter() - started
                references = version.manifest.references[:max_references]
                proof = await prove(
                    replica.engine,
                    version.engine_name,
                    version.base_model,
                    version.manifest,
                    self._tolerance,
                    references,
                )
            except EngineUnreachable:
                raise  # its process is gone or stuck, so there is nothing to take back
            except LorawayError as error:
                await self._fleet.record_failed(replica, version, error)
                if version.engine_name in replica.loaded:
                    await self._unload(replica, version.engine_name, _ROOM_SECONDS)
                raise
            if not was_proved or replica.incarnation != incarnation:
                await self._fleet.record_loaded(replica, version, incarnation)
            return LoadReport(replica, was_loaded, load_seconds, proof)

    async def take_off(self, replica: Replica, engine_names: Iterable[str], wait_seconds: float) -> None:
        """Unload adapters; after `wait_seconds` the unloads go on by themselves."""
        async with replica.lock:
            for engine_name in engine_names:
                await self._take_off(replica, engine_name, wait_seconds)

    async def make_way(self, replica: Replica, wanted: Collection[Wanted], spare_slots: int) -> Plan:
        """Unload what may not stay, and what must go for what is wanted; returns the plan it followed."""
        async with replica.lock:
            plan = plan_convergence(wanted, await self._picture(replica), replica.slots, spare_slots)
            for engine_name in plan.unload:
                await self._take_off(replica, engine_name, _UNHURRIED_SECONDS)
            return plan

    async def _picture(self, replica: Replica) -> list[Loaded]:
        """What the replica holds, with what the database knows of it."""
        names = list(replica.loaded)
        # Before the database is read: a rollout lets go only once its alias has moved.
        held = {name for name in names if self._fleet.is_held(name) or name in replica.unloads}
        ours = await asyncio.to_thread(self._fleet.rows.versions_named, names)
        aliased = await self._fleet.wanted(replica.base_model)
        return [_as_loaded(replica, name, ours.get(name), aliased, name in held) for name in names]

    async def _make_room(self, replica: Replica, wanted: Wanted, *, is_asked_for: bool) -> None:
        plan = plan_room(wanted, await self._picture(replica), replica.slots, is_asked_for=is_asked_for)
        if plan is None:
            raise AdapterNotLoaded(
                f"The engine at {replica.engine.url} has no room for {wanted.engine_name}: its "
                f"{replica.slots} slots hold adapters that matter more.",
                retry_after_seconds=_RETRY_SECONDS,
            )
        for engine_name in plan.unload:
            if not await self._take_off(replica, engine_name, _ROOM_SECONDS):
                raise AdapterNotLoaded(
                    f"The engine at {replica.engine.url} still runs requests of {engine_name}, which makes "
                    f"room for {wanted.engine_name}.",
                    retry_after_seconds=_RETRY_SECONDS,
                )

    async def _wait_for_unload(self, replica: Replica, engine_name: str) -> None:
        """A version that is asked for again while it is being unloaded comes back after that."""
        task = replica.unloads.get(engine_name)
        if task is not None and not (await asyncio.wait({task}, timeout=_ROOM_SECONDS))[0]:
            raise AdapterNotLoaded(
                f"The engine at {replica.engine.url} still runs requests of {engine_name}, then unloads it.",
                retry_after_seconds=_RETRY_SECONDS,
            )

    async def _load(self, replica: Replica, version: Version) -> None:
        path = str(version.path)
        if replica.loaded.get(version.engine_name, path) != path:
            raise EngineMismatch(
                f"The engine at {replica.engine.url} has {version.engine_name} loaded from another place."
            )
        replica.edits += 1
        try:
            await replica.engine.load_adapter(version.engine_name, path)
        finally:
            replica.edits += 1
        replica.loaded[version.engine_name] = path

    async def _read_loaded(self, replica: Replica) -> None:
        replica.edits += 1
        replica.loaded = await replica.engine.loaded_adapters()

    async def _take_off(self, replica: Replica, engine_name: str, wait_seconds: float) -> bool:
        if await self._fleet.forget(replica, engine_name):
            await asyncio.sleep(self._grace_seconds)
        return await self._unload(replica, engine_name, wait_seconds)

    async def _unload(self, replica: Replica, engine_name: str, wait_seconds: float) -> bool:
        """Whether it is unloaded within this time; the unload goes on if not."""
        task = replica.unloads.get(engine_name)
        if task is None:
            task = self._tasks.create_task(self._run_unload(replica, engine_name))
            replica.unloads[engine_name] = task
        await asyncio.wait({task}, timeout=wait_seconds)
        return engine_name not in replica.loaded

    async def _run_unload(self, replica: Replica, engine_name: str) -> None:
        replica.edits += 1
        try:
            await replica.engine.unload_adapter(engine_name)
            replica.loaded.pop(engine_name, None)
        except LorawayError as error:
            _log.warning("unloading %s from %s: %s", engine_name, replica.engine.url, error.message)
        finally:
            replica.edits += 1
            del replica.unloads[engine_name]
            replica.has_news.set()


def _as_loaded(
    replica: Replica,
    engine_name: str,
    version_id: VersionId | None,
    aliased: Mapping[VersionId, Wanted],
    is_held: bool,
) -> Loaded:
    if version_id is None:
        is_foreign = _OUR_NAME.fullmatch(engine_name) is None
        return Loaded(engine_name, Importance.RETIRED, is_held=is_held or is_foreign)
    wanted = aliased.get(version_id)
    residency = replica.residencies.get(version_id)
    return Loaded(
        engine_name,
        importance=wanted.importance if wanted is not None else Importance.BY_NAME,
        used_at=residency.used_at if residency is not None else 0.0,
        is_held=is_held,
    )
