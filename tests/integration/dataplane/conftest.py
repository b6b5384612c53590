"""Engines and a gateway before them."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from tests.integration.dataplane.running_gateway import (
    Gateway,
    fill_database,
    running_gateway,
    settings_for,
)
from tests.integration.dataplane.scripted_engine import ScriptedEngine


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loop that the gateway runs on."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A data folder with a project, a key, a base model and an adapter, to be copied; and the key."""
    folder = tmp_path_factory.mktemp("filled")
    return folder, fill_database(settings_for(folder))


@pytest.fixture
async def engine() -> AsyncIterator[ScriptedEngine]:
    engine = ScriptedEngine()
    await engine.start()
    yield engine
    await engine.stop()


@pytest.fixture
async def other_engine() -> AsyncIterator[ScriptedEngine]:
    engine = ScriptedEngine()
    await engine.start()
    yield engine
    await engine.stop()


@pytest.fixture
def gateway_options() -> dict[str, Any]:
    """Settings of the gateway; a test overrides this by parametrizing it."""
    return {}


@pytest.fixture
async def gateway(
    engine: ScriptedEngine, tmp_path: Path, filled: tuple[Path, str], gateway_options: dict[str, Any]
) -> AsyncIterator[Gateway]:
    folder, key = filled
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    async with running_gateway(settings_for(tmp_path, **gateway_options), key) as gateway:
        await gateway.set_replicas(engine.port)
        yield gateway
