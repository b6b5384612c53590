"""`/v1/adapters`: what was trained, which version serves, and the way back."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from adapters_store.registry import Registry
from adapters_store.version import AdapterSummary, Rollout, RolloutState, Version
from engines.controller_client import ControllerClient
from gateway.api.routing import Fields, ListOf, Project, api_router
from gateway.routing.snapshot import Snapshot
from gateway.routing.source import SnapshotSource
from loraway.errors import (
    Conflict,
    EngineMismatch,
    EngineRejected,
    LorawayError,
    NoReplicaReady,
    NotFound,
    Unavailable,
    UpstreamFailed,
    UpstreamTimedOut,
)
from loraway.ids import ProjectId, RolloutId

_POLL_SECONDS = 0.05
#: A snapshot that has not followed by then follows later; the alias has moved all the same.
_SNAPSHOT_SECONDS = 2.0
_ROLLOUT_ERRORS: dict[str | None, type[LorawayError]] = {
    kind.code: kind for kind in (Conflict, EngineRejected, EngineMismatch, NoReplicaReady, Unavailable)
}


class AdapterObject(BaseModel):
    """An adapter and where its alias points."""

    id: str
    object: Literal["adapter"] = "adapter"
    name: str
    base_model: str
    #: What `model: NAME` is answered by; null until a version was rolled out.
    version: str | None
    #: Where a rollback goes.
    previous_version: str | None
    version_count: int
    created_at: int
    #: When the alias last moved.
    updated_at: int | None


class RollbackBody(Fields):
    """Where to; the whole body may be left out."""

    version: str | None = Field(
        None, max_length=96, description="`NAME@NUMBER`; the version before if left out."
    )


class RolledBackAdapter(AdapterObject):
    """An adapter after a rollback; `before` and `after` are what its alias pointed at."""

    before: str
    after: str


class VersionObject(BaseModel):
    """An immutable set of weights."""

    id: str
    object: Literal["adapter.version"] = "adapter.version"
    name: str
    adapter: str
    number: int
    base_model: str
    state: str
    rank: int
    alpha: int
    target_modules: list[str]
    method: str
    hyperparameters: dict[str, float | int | str | bool | None]
    #: Held-out figures of base and version.
    metrics: dict[str, float]
    job_id: str | None
    dataset_id: str | None
    #: Ready replicas that have it loaded now.
    loaded_replicas: int
    created_at: int


@dataclass(frozen=True, slots=True)
class AdapterRoutes:
    """The routes of adapters."""

    registry: Registry
    controller: ControllerClient
    snapshots: SnapshotSource
    rollout_seconds: float

    def router(self) -> APIRouter:
        router = api_router("Adapters")
        router.get("/v1/adapters")(self.list_adapters)
        router.get("/v1/adapters/{name}")(self.retrieve)
        router.get("/v1/adapters/{name}/versions")(self.list_versions)
        router.post("/v1/adapters/{name}/rollback")(self.roll_back)
        return router

    def list_adapters(self, project: Project) -> ListOf[AdapterObject]:
        """Every adapter, by name."""
        return ListOf.of([self._adapter(summary) for summary in self.registry.adapters(project)])

    def retrieve(self, project: Project, name: str) -> AdapterObject:
        """One adapter."""
        return self._adapter(self._summary(project, name))

    def list_versions(self, project: Project, name: str) -> ListOf[VersionObject]:
        """The adapter's versions, oldest first."""
        versions = self.registry.versions(project, name)
        if not versions:
            raise _no_adapter(name)
        return ListOf.of([self._version(version) for version in versions])

    async def roll_back(
        self, project: Project, name: str, body: RollbackBody | None = None
    ) -> RolledBackAdapter:
        """Move the alias to the version before, or to one by name, once the replicas have it.

        Answers when the alias has moved. 409 when there is no version before.
        """
        before = (await asyncio.to_thread(self._summary, project, name)).serving
        version = body.version if body is not None else None
        target = await asyncio.to_thread(self._target, project, name, version)
        rollout_id = await asyncio.to_thread(self.registry.request_rollout, project, name, target.version_id)
        await self.controller.wake()
        await self._wait_until_done(rollout_id)
        await self._wait_until_visible(project, name, target)
        adapter = await asyncio.to_thread(self.retrieve, project, name)
        return RolledBackAdapter(**adapter.model_dump(), before=before or "", after=target.name)

    async def _wait_until_done(self, rollout_id: RolloutId) -> None:
        try:
            async with asyncio.timeout(self.rollout_seconds):
                while True:
                    rollout = await asyncio.to_thread(self.registry.rollout, rollout_id)
                    if rollout.state.is_terminal:
                        break
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError as error:
            raise UpstreamTimedOut(
                f"The replicas did not take the version within {self.rollout_seconds:g} seconds. "
                "The rollback goes on; GET the adapter to see it."
            ) from error
        if rollout.state is RolloutState.FAILED:
            raise _error_of(rollout)

    async def _wait_until_visible(self, project: ProjectId, name: str, target: Version) -> None:
        """The client's next request through this worker is to meet the new version."""

        def is_visible(snapshot: Snapshot) -> bool:
            found = snapshot.resolve(project, name)
            return found is not None and found.version_id == target.version_id

        await self.snapshots.wait_for(is_visible, asyncio.get_running_loop().time() + _SNAPSHOT_SECONDS)

    def _target(self, project: ProjectId, name: str, version_name: str | None) -> Version:
        if version_name is None:
            return self.registry.rollback_target(project, name)
        for version in self.registry.versions(project, name):
            if version.name == version_name:
                return version
        raise NotFound(f"{name[:80]!r} has no version {version_name[:80]!r}.", param="version")

    def _summary(self, project: ProjectId, name: str) -> AdapterSummary:
        for summary in self.registry.adapters(project):
            if summary.name == name:
                return summary
        raise _no_adapter(name)

    def _adapter(self, summary: AdapterSummary) -> AdapterObject:
        alias, previous = summary.alias, None
        if alias is not None and alias.previous_version_id is not None:
            previous = self.registry.version(alias.previous_version_id).name
        return AdapterObject(
            id=summary.adapter_id,
            name=summary.name,
            base_model=summary.base_model,
            version=summary.serving,
            previous_version=previous,
            version_count=summary.version_count,
            created_at=int(summary.created_at),
            updated_at=int(alias.updated_at) if alias is not None else None,
        )

    def _version(self, version: Version) -> VersionObject:
        replicas = self.snapshots.current.replicas.get(version.base_model, ())
        manifest = version.manifest
        return VersionObject(
            id=version.version_id,
            name=version.name,
            adapter=version.adapter_name,
            number=version.number,
            base_model=version.base_model,
            state=version.state,
            rank=version.rank,
            alpha=manifest.alpha,
            target_modules=manifest.target_modules,
            method=manifest.method,
            hyperparameters=manifest.hyperparameters,
            metrics=manifest.metrics,
            job_id=version.job_id,
            dataset_id=manifest.dataset_id,
            loaded_replicas=sum(
                replica.is_ready and version.version_id in replica.loaded for replica in replicas
            ),
            created_at=int(version.created_at),
        )


def _no_adapter(name: str) -> NotFound:
    return NotFound(f"There is no adapter {name[:80]!r} in this project.", param="name")


def _error_of(rollout: Rollout) -> LorawayError:
    reported = rollout.error or {}
    kind = _ROLLOUT_ERRORS.get(reported.get("code"), UpstreamFailed)
    return kind(f"The alias did not move: {reported.get('message') or 'the rollout failed'}")
