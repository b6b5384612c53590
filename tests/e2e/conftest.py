"""Real engines for the tests that need one: each is started once a run, when the first test asks for it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

import pytest
import pytest_asyncio

from engines.launch.catalogue import choose_port, spec_for
from engines.launch.launcher import LocalEngineKind
from engines.launch.process import EngineProcess
from loraway.models import EMBEDDED_MODEL
from loraway.settings import Settings
from tests.adapters import ModelSize, write_adapter

#: Prepared once and kept: the same folder as `make run` uses.
MODELS = Path(__file__).parents[2] / ".loraway" / "models"
READY_SECONDS = 240.0
ENGINE_KEY = "key-of-the-test-engines"

StartEngine = Callable[..., Awaitable[EngineProcess]]


class RandomAdapter(Protocol):
    """Writes an adapter with random weights for the model that the engines of the session serve."""

    def __call__(self, rank: int, seed: int) -> Path: ...


def prepare(target: Path, *arguments: str) -> Path:
    """Make a model's folder in a process of its own, unless it is there."""
    command = [sys.executable, "-m", "engines.launch.prepare_model", *arguments, str(target)]
    subprocess.run(command, check=True, timeout=240)
    return target


@pytest.fixture(scope="session")
def model_folder() -> Path:
    """The embedded model, SmolLM2-135M-Instruct."""
    return prepare(MODELS / EMBEDDED_MODEL)


@pytest.fixture(scope="session")
def two_layer_model(model_folder: Path) -> Path:
    """Its first and its last layer: answers nonsense, quickly."""
    return prepare(MODELS / "smollm2-two-layers", "--two-layers-of", str(model_folder))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def start_engine(
    model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[StartEngine]:
    """Starts an engine in float32 and waits until it is ready; all are stopped at the end of the session.

    `start_engine(kind, model_path=..., **engine_settings)` takes whatever the settings' `engine` part takes.
    """
    started: list[EngineProcess] = []

    async def start(kind: LocalEngineKind, **engine_settings: Any) -> EngineProcess:
        engine = {"device": "cpu", "dtype": "float32", "model_path": model_folder} | engine_settings
        settings = Settings.model_validate(
            {"data_dir": tmp_path_factory.mktemp(f"{kind}-engine"), "engine": engine}
        )
        process = EngineProcess(spec_for(kind, settings, port=choose_port(), api_key=ENGINE_KEY))
        started.append(process)
        await process.start()
        await process.wait_ready(READY_SECONDS)
        return process

    try:
        yield start
    finally:
        for process in started:
            await process.stop()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def vllm_engine(start_engine: StartEngine) -> EngineProcess:
    """A real vLLM that serves the embedded model with the default limits."""
    return await start_engine("vllm")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def sglang_engine(start_engine: StartEngine) -> EngineProcess:
    """A real SGLang that serves the embedded model with the default limits."""
    return await start_engine("sglang")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def small_vllm_engine(start_engine: StartEngine, two_layer_model: Path) -> EngineProcess:
    """A real vLLM that serves the two-layer model: for what an engine does, not for what it says."""
    return await start_engine("vllm", model_path=two_layer_model)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def small_sglang_engine(start_engine: StartEngine, two_layer_model: Path) -> EngineProcess:
    """A real SGLang that serves the two-layer model."""
    return await start_engine("sglang", model_path=two_layer_model)


@pytest.fixture(scope="session")
def random_adapter(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RandomAdapter:
    """A factory of adapters for the embedded model; equal arguments give equal weights in a new folder."""
    size = ModelSize.read(model_folder)

    def write(rank: int, seed: int) -> Path:
        folder = tmp_path_factory.mktemp(f"adapter-r{rank}-s{seed}")
        return write_adapter(folder, seed, rank=rank, size=size, base_model=EMBEDDED_MODEL)

    return write
