"""The controller as a process: its interface, its lock, its end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy import insert, select

from adapters_store.registry import Registry
from engines.controller_client import ControllerClient
from engines.controller_lock import controller_lock
from engines.launch.catalogue import choose_port
from loadtest.simulator.engine import SimulatedEngine
from loraway.database import Database, read_revision
from loraway.errors import AdapterNotLoaded
from loraway.ids import VersionId
from loraway.schema import base_models, projects
from loraway.secrets import read_or_create_secret
from loraway.settings import Settings
from tests.integration.deployment import (
    BASE,
    PROJECT,
    SECONDS,
    Deployment,
    deploy,
    eventually,
    make_settings,
)

KEY = "engine-key"


@pytest.fixture
async def deployment(tmp_path: Path, sqlite_url: str) -> AsyncIterator[Deployment]:
    database = Database(sqlite_url)
    async with (
        SimulatedEngine("vllm", api_key=KEY) as engine,
        deploy(tmp_path, database, engine) as deployed,
    ):
        yield deployed
    database.dispose()


async def test_its_interface_takes_the_internal_key_only(deployment: Deployment) -> None:
    version = deployment.train()
    base_url = f"http://127.0.0.1:{deployment.controller.port}"
    key = read_or_create_secret(deployment.settings, "internal")
    async with httpx.AsyncClient(base_url=base_url, trust_env=False, timeout=SECONDS) as client:
        for path in (f"/internal/versions/{version.version_id}/load", "/internal/wake"):
            for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Bearer {KEY}"}):
                answer = await client.post(path, headers=headers)
                assert answer.status_code == 401
                assert answer.json()["error"]["code"] == "invalid_api_key"
        client.headers["authorization"] = f"Bearer {key}"
        assert (await client.post("/internal/wake")).status_code == 204
        answer = await client.post(f"/internal/versions/{version.version_id}/load")
        assert answer.status_code == 200 and len(answer.json()["replicas"]) == 1
        answer = await client.post("/internal/versions/version-none/load")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
        health = (await client.get("/internal/healthz")).json()
        assert health["status"] == "ok" and set(health["replicas"].values()) == {"ready"}


async def test_the_base_models_row_says_what_is_served(deployment: Deployment) -> None:
    with deployment.database.read() as connection:
        row = connection.execute(select(base_models)).one()
    assert row.name == BASE
    assert len(row.revision) == len(row.template_sha256) == 64


async def test_an_idle_deployment_moves_no_routing_revision(deployment: Deployment) -> None:
    """Else every gateway worker would read its snapshot again at each health reading."""
    await deployment.serve("codename")
    (replica,) = deployment.controller.fleet.replicas.values()

    def revision() -> int:
        with deployment.database.read() as connection:
            return read_revision(connection)

    before, edits = revision(), replica.edits
    (engine,) = deployment.engines
    readings = engine.replica.counts.loads
    await asyncio.sleep(1.0)  # ten readings; it is their absence of effect that is tested
    assert revision() == before and replica.edits == edits
    assert engine.replica.counts.loads == readings


async def test_a_second_controller_waits_until_the_first_has_gone(database: Database) -> None:
    order: list[str] = []

    async def hold(name: str, release: asyncio.Event) -> None:
        async with controller_lock(database):
            order.append(name)
            await release.wait()

    first_may_go, second_may_go = asyncio.Event(), asyncio.Event()
    first = asyncio.create_task(hold("first", first_may_go))
    await eventually(lambda: order == ["first"], "the first has the lock")
    second = asyncio.create_task(hold("second", second_may_go))
    await asyncio.sleep(0.5)  # two tries of the second
    assert order == ["first"]
    first_may_go.set()
    await first
    await eventually(lambda: order == ["first", "second"], "the second has the lock")
    second_may_go.set()
    await second


async def test_without_a_controller_a_client_is_told_to_try_again() -> None:
    client = ControllerClient(f"http://127.0.0.1:{choose_port()}", "key")
    with pytest.raises(AdapterNotLoaded) as raised:
        await client.load(VersionId("version-1"))
    assert raised.value.retry_after_seconds
    await client.wake()
    await client.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
async def test_the_process_ends_when_told_and_the_next_one_takes_up_the_work(
    tmp_path: Path, sqlite_url: str, number: signal.Signals
) -> None:
    database = Database(sqlite_url)
    async with SimulatedEngine("vllm", api_key=KEY) as engine:
        settings = make_settings(tmp_path, database, [engine], 8)
        with database.write() as connection:
            connection.execute(insert(projects).values(id=PROJECT, name="test", created_at=0.0))
        registry = Registry(database, settings.blobs_dir / "adapters")
        deployment = Deployment(settings, database, registry, [engine], tmp_path)

        process = await _start_process(settings, engine)
        await eventually(lambda: deployment.state(engine) == "ready", "the replica is ready")
        process.send_signal(number)
        returncode = await asyncio.wait_for(process.wait(), SECONDS)
        assert returncode == (-number if number is signal.SIGKILL else 0)

        version = deployment.train()
        rollout_id = registry.request_rollout(PROJECT, "codename", version.version_id)
        registry.start_rollout(rollout_id)  # as a controller leaves it that dies in the middle
        process = await _start_process(settings, engine)
        await eventually(lambda: registry.rollout(rollout_id).state.is_terminal, "the rollout ends")
        assert deployment.pointed_at() == "codename@1"
        process.terminate()
        assert await asyncio.wait_for(process.wait(), SECONDS) == 0
    database.dispose()


async def _start_process(settings: Settings, engine: SimulatedEngine) -> asyncio.subprocess.Process:
    environment = {
        **os.environ,
        "LORAWAY_DATA_DIR": str(settings.data_dir),
        "LORAWAY_DATABASE__URL": settings.database_url,
        "LORAWAY_ENGINE__URLS": f'["vllm={engine.url}"]',
        "LORAWAY_ENGINE__MODEL_PATH": str(settings.engine.model_path),
        "LORAWAY_ENGINE__API_KEY": KEY,
        "LORAWAY_CONTROLLER__PORT": "0",
    }
    return await asyncio.create_subprocess_exec(sys.executable, "-m", "engines.controller", env=environment)
