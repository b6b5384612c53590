"""Brings what aliases point at to every replica: after restarts, evictions, crashes and joins.

A version that is only asked for by its own name is loaded by its first request (`cold.py`), not here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

from adapters_store.registry import Registry
from engines.fleet import Fleet, Replica
from engines.loader import Loader
from engines.plan import Wanted
from loraway.errors import LorawayError
from loraway.ids import ReplicaId, VersionId

_log = logging.getLogger(__name__)

#: References proved again after a restart: one tells the adapter from the base model and from others.
_REFERENCES = 1
_LONGEST_PAUSE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class _Pause:
    """A version that could not be loaded on a replica is not tried again before this time."""

    until: float
    seconds: float


class Reconciler:
    """Converges one replica at a time; owns the pauses after failures."""

    def __init__(self, fleet: Fleet, loader: Loader, registry: Registry) -> None:
        self._fleet = fleet
        self._loader = loader
        self._registry = registry
        self._pauses: dict[tuple[ReplicaId, int, VersionId], _Pause] = {}

    async def converge(self, replica: Replica) -> None:
        """Load, on this replica, what is wanted and missing; unload what may not stay."""
        if not (replica.is_ready and replica.takes_adapters):
            return
        wanted = await self._fleet.wanted(replica.base_model)
        # SGLang's unload waits for running requests and all loads wait behind it: do it before it is needed.
        spare = 1 if replica.engine.kind == "sglang" and replica.slots > 1 else 0
        if _is_settled(replica, wanted, spare):
            return
        plan = await self._loader.make_way(replica, wanted.values(), spare)
        for version_id, wish in wanted.items():
            is_planned = wish.engine_name in replica.loaded or wish.engine_name in plan.load
            if is_planned and version_id not in replica.residencies:
                await self._bring(replica, version_id, wish)

    async def _bring(self, replica: Replica, version_id: VersionId, wish: Wanted) -> None:
        key = replica.replica_id, replica.incarnation, version_id
        pause = self._pauses.get(key)
        if pause is not None and time.monotonic() < pause.until:
            return
        try:
            version = await asyncio.to_thread(self._registry.version, version_id)
            report = await self._loader.bring(
                replica, version, wish.importance, is_asked_for=False, max_references=_REFERENCES
            )
        except LorawayError as error:
            seconds = min(pause.seconds * 2, _LONGEST_PAUSE_SECONDS) if pause is not None else 1.0
            self._pauses[key] = _Pause(time.monotonic() + seconds, seconds)
            _log.warning("bringing %s to %s: %s", wish.engine_name, replica.engine.url, error.message)
            return
        self._pauses.pop(key, None)
        _log.info("%s is loaded on %s (%.2f s)", wish.engine_name, replica.engine.url, report.load_seconds)


def _is_settled(replica: Replica, wanted: Mapping[VersionId, Wanted], spare_slots: int) -> bool:
    """Everything wanted serves, nothing else is loaded than what serves, and there is room to spare."""
    serving = {residency.engine_name for residency in replica.residencies.values()}
    return (
        wanted.keys() <= replica.residencies.keys()
        and replica.loaded.keys() <= serving
        and len(replica.loaded) <= replica.slots - spare_slots
    )
