"""A control plane for each test, on an event loop in a thread of its own: tests use blocking clients."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal

from adapters_store.version import Version
from gateway.routing.snapshot import Snapshot
from loadtest.simulator.engine import SimulatedEngine
from loraway.database import Database
from loraway.ids import ProjectId
from loraway.settings import Settings, changed
from tests.integration.api.plane import ControlPlane, running
from tests.integration.deployment import PROJECT, Deployment, deploy


@pytest.fixture
def portal() -> Iterator[BlockingPortal]:
    with start_blocking_portal() as portal:
        yield portal


@dataclass(frozen=True, slots=True)
class Driven:
    """A control plane and the way onto its event loop."""

    plane: ControlPlane
    portal: BlockingPortal

    def store(self, *words: str, **fields: Any) -> str:
        """Log a completion; returns its id."""
        return self.portal.call(lambda: self.plane.store(*words, **fields))


def make_settings(folder: Path, database_url: str) -> Settings:
    return Settings(
        data_dir=folder / "data",
        database={"url": database_url},
        gateway={
            "snapshot_poll_seconds": 0.01,
            "max_upload_bytes": 2**20,
            "timeouts": {"request_arrival_seconds": 0.5},
        },
        controller={"port": 1},
    )


#: Runs a test on SQLite and on PostgreSQL; without it, on SQLite.
on_each_database = pytest.mark.parametrize("database_kind", ["sqlite", "postgres"], indirect=True)


@pytest.fixture
def database_kind(request: pytest.FixtureRequest) -> str:
    return str(getattr(request, "param", "sqlite"))


@pytest.fixture
def driven(
    tmp_path: Path, database_kind: str, portal: BlockingPortal, request: pytest.FixtureRequest
) -> Iterator[Driven]:
    """Without a controller."""
    settings = make_settings(tmp_path, request.getfixturevalue(f"{database_kind}_url"))
    with portal.wrap_async_context_manager(running(settings)) as plane:
        yield Driven(plane, portal)


@pytest.fixture
def plane(driven: Driven) -> ControlPlane:
    return driven.plane


@dataclass(frozen=True, slots=True)
class Deployed:
    """A control plane with a controller and a simulated engine behind it."""

    plane: ControlPlane
    deployment: Deployment
    engine: SimulatedEngine
    portal: BlockingPortal

    def train_and_roll_out(self, name: str = "codename") -> None:
        """The next version of an adapter, under its alias, and known to the gateway."""
        project_id, snapshots = self.plane.mine.project_id, self.plane.parts.snapshots

        async def roll_out() -> None:
            version = self.deployment.train(name)
            await self.deployment.roll_out(version, name)
            is_known = partial(_points_at, project_id=project_id, name=name, version=version)
            assert await snapshots.wait_for(is_known, asyncio.get_running_loop().time() + 10)

        self.portal.call(roll_out)


def _points_at(snapshot: Snapshot, project_id: ProjectId, name: str, version: Version) -> bool:
    target = snapshot.resolve(project_id, name)
    return target is not None and target.version_id == version.version_id


@pytest.fixture
def deployed(tmp_path: Path, sqlite_url: str, portal: BlockingPortal) -> Iterator[Deployed]:
    """`mine` is the project that the deployment's adapters belong to."""
    database = Database(sqlite_url)
    wrap = portal.wrap_async_context_manager
    with wrap(SimulatedEngine("vllm", api_key="engine-key")) as engine:  # noqa: SIM117 - each needs the one before
        with wrap(deploy(tmp_path, database, engine)) as deployment:
            settings = changed(deployment.settings, "controller", port=deployment.controller.port)
            with wrap(running(settings, ("test", "other"))) as plane:
                assert plane.mine.project_id == PROJECT
                yield Deployed(plane, deployment, engine, portal)
    database.dispose()
