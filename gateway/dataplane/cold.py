"""Versions that no replica has loaded: asked of the controller once, however many requests wait."""

from __future__ import annotations

import asyncio
from typing import Protocol

from gateway.dataplane.engine_errors import RETRY_AFTER_SECONDS
from gateway.routing.snapshot import Snapshot, Target
from gateway.routing.source import SnapshotSource
from loraway.errors import AdapterNotLoaded, LorawayError
from loraway.ids import VersionId


class VersionLoader(Protocol):
    """`engines.controller_client.ControllerClient`, as far as it is needed here."""

    async def load(self, version_id: VersionId, timeout_seconds: float = ...) -> None:
        """Returns once the version is loaded and proved on at least one replica."""
        ...


class ColdVersions:
    """Owns the loads under way, one task a version; requests that wait for one share its outcome."""

    def __init__(self, controller: VersionLoader, snapshots: SnapshotSource, timeout_seconds: float) -> None:
        self._controller = controller
        self._snapshots = snapshots
        self._timeout_seconds = timeout_seconds
        self._loads: dict[VersionId, asyncio.Task[LorawayError | None]] = {}

    async def ensure(self, target: Target) -> None:
        """Return when the snapshot shows a ready replica with the version; raises why there is none."""
        assert target.version_id is not None
        load = self._loads.get(target.version_id)
        if load is None:
            load = asyncio.get_running_loop().create_task(self._load(target, target.version_id))
            self._loads[target.version_id] = load
        # A request that goes away does not take the others' load along.
        error = await asyncio.shield(load)
        if error is not None:
            raise error

    async def stop(self) -> None:
        """Cancel the loads under way and wait for their end."""
        loads = list(self._loads.values())
        for load in loads:
            load.cancel()
        await asyncio.gather(*loads, return_exceptions=True)

    async def _load(self, target: Target, version_id: VersionId) -> LorawayError | None:
        deadline = asyncio.get_running_loop().time() + self._timeout_seconds
        try:
            async with asyncio.timeout_at(deadline):
                await self._controller.load(version_id, self._timeout_seconds)
            if await self._snapshots.wait_for(lambda snapshot: is_resident(snapshot, target), deadline):
                return None
        except LorawayError as error:
            return error
        except TimeoutError:
            pass
        finally:
            del self._loads[version_id]
        return AdapterNotLoaded(
            f"{target.name} was not loaded within {self._timeout_seconds:g} seconds; try again.",
            retry_after_seconds=RETRY_AFTER_SECONDS,
        )


def is_resident(snapshot: Snapshot, target: Target) -> bool:
    """Whether a ready replica has the target's version."""
    return any(
        replica.is_ready and target.version_id in replica.loaded
        for replica in snapshot.replicas.get(target.base_model, ())
    )
