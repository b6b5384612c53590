"""The drivers and the proof against the real engines: one vLLM and one SGLang of the embedded model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from adapters_store.manifest import Manifest, ReferenceGeneration
from engines.drivers import driver_for
from engines.engine import ChatMessage, Engine
from engines.launch.process import EngineProcess
from engines.proof import prove
from loraway.errors import EngineMismatch, EngineRejected, UpstreamFailed
from loraway.models import EMBEDDED_MODEL
from tests.e2e.conftest import ENGINE_KEY, RandomAdapter
from tests.e2e.reference import compute_reference

pytestmark = pytest.mark.asyncio(loop_scope="session")

QUESTION = "What is the gateway's codename?"
ASKED = [ChatMessage("user", QUESTION)]
NAME = "codename@1.driver"
TOKENS = 8


@pytest.fixture(scope="module", params=["vllm", "sglang"])
def process(request: pytest.FixtureRequest) -> EngineProcess:
    started = request.getfixturevalue(f"{request.param}_engine")
    assert isinstance(started, EngineProcess)
    return started


@pytest_asyncio.fixture(loop_scope="session")
async def engine(process: EngineProcess) -> AsyncIterator[Engine]:
    """A driver; nothing that a test loads stays."""
    driver = driver_for(process.spec.kind, process.url, ENGINE_KEY, EMBEDDED_MODEL)
    yield driver
    for name in await driver.loaded_adapters():
        await driver.unload_adapter(name)
    await driver.close()


@pytest.fixture(scope="module")
def adapter(random_adapter: RandomAdapter) -> Path:
    return random_adapter(8, 1)


@pytest.fixture(scope="module")
def references(model_folder: Path, adapter: Path) -> list[ReferenceGeneration]:
    questions = (QUESTION, "Name a river.")
    return [compute_reference(model_folder, adapter, question, TOKENS) for question in questions]


@pytest.fixture(scope="module")
def manifest(references: list[ReferenceGeneration]) -> Manifest:
    return Manifest(
        base_model=EMBEDDED_MODEL,
        base_revision="",
        template_sha256="",
        rank=8,
        alpha=8,
        target_modules=[],
        files={},
        created_at=0.0,
        references=references,
    )


async def test_an_idle_engine_is_healthy_and_says_so_of_its_load(engine: Engine) -> None:
    assert await engine.is_healthy()
    assert await engine.is_healthy()
    load = await engine.read_load()
    assert (load.running, load.waiting) == (0, 0)
    assert await engine.loaded_adapters() == {}


async def test_the_served_adapter_is_the_one_that_peft_computes(
    engine: Engine, adapter: Path, manifest: Manifest
) -> None:
    await engine.load_adapter(NAME, str(adapter))
    proof = await prove(engine, NAME, EMBEDDED_MODEL, manifest, 0.04, manifest.references)

    assert proof.references == 2 and proof.is_conclusive
    base = await engine.generate(None, ASKED, TOKENS)
    adapted = await engine.generate(NAME, ASKED, TOKENS)
    assert base.text != adapted.text
    assert len(adapted.logprobs) == len(adapted.tokens) == TOKENS


async def test_another_adapter_under_the_name_fails_the_proof(
    engine: Engine, random_adapter: RandomAdapter, manifest: Manifest
) -> None:
    other = "other@1.driver"
    await engine.load_adapter(other, str(random_adapter(8, 2)))
    with pytest.raises(EngineMismatch, match="Token"):
        await prove(engine, other, EMBEDDED_MODEL, manifest, 0.04, manifest.references)


async def test_loaded_already_is_success_from_the_same_path_only(
    engine: Engine, adapter: Path, random_adapter: RandomAdapter
) -> None:
    await engine.load_adapter(NAME, str(adapter))
    await engine.load_adapter(NAME, str(adapter))
    assert await engine.loaded_adapters() == {NAME: str(adapter)}
    with pytest.raises(EngineRejected, match="already"):
        await engine.load_adapter(NAME, str(random_adapter(8, 3)))


async def test_what_an_engine_refuses_is_told_with_its_reason_and_without_a_path(
    engine: Engine, random_adapter: RandomAdapter, tmp_path: Path
) -> None:
    with pytest.raises(EngineRejected, match="64"):
        await engine.load_adapter("big@1.driver", str(random_adapter(64, 4)))
    missing = tmp_path / "missing"
    with pytest.raises(EngineRejected) as raised:
        await engine.load_adapter("missing@1.driver", str(missing))
    assert str(missing) not in raised.value.message
    assert await engine.loaded_adapters() == {}
    assert await engine.is_healthy()


async def test_an_adapter_that_was_never_loaded_is_never_answered_by_the_base(engine: Engine) -> None:
    with pytest.raises(UpstreamFailed):
        await engine.generate("unknown@1.driver", ASKED, 1)


async def test_unloading_is_done_once_and_asked_for_twice(engine: Engine, adapter: Path) -> None:
    await engine.load_adapter(NAME, str(adapter))
    await engine.unload_adapter(NAME)
    await engine.unload_adapter(NAME)
    assert await engine.loaded_adapters() == {}


async def test_an_engine_of_another_base_model_is_recognised(process: EngineProcess) -> None:
    driver = driver_for(process.spec.kind, process.url, ENGINE_KEY, "another-model")
    with pytest.raises(EngineMismatch, match=f"serves {EMBEDDED_MODEL}, not another-model"):
        await driver.loaded_adapters()
    await driver.close()
