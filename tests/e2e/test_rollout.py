"""Hot swaps on a real vLLM and a real SGLang at once, both behind one name."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from adapters_store.manifest import ReferenceGeneration
from adapters_store.version import RolloutState, Version
from engines.drivers import driver_for
from engines.engine import ChatMessage, EngineKind
from engines.launch.process import EngineProcess
from loraway.database import Database
from loraway.models import EMBEDDED_MODEL
from tests.e2e.conftest import ENGINE_KEY, RandomAdapter
from tests.e2e.reference import compute_reference
from tests.integration.deployment import Deployment, deploy

pytestmark = pytest.mark.asyncio(loop_scope="session")

QUESTIONS = ("What is the gateway's codename?", "Name a river.")
TOKENS = 12


@dataclass(frozen=True)
class RealEngine:
    """What a deployment needs to know of an engine."""

    kind: EngineKind
    url: str


@pytest_asyncio.fixture(loop_scope="session")
async def both(
    tmp_path: Path, model_folder: Path, vllm_engine: EngineProcess, sglang_engine: EngineProcess
) -> AsyncIterator[Deployment]:
    database = Database(f"sqlite:///{tmp_path / 'loraway.db'}")
    database.migrate()
    engines = [RealEngine("vllm", vllm_engine.url), RealEngine("sglang", sglang_engine.url)]
    async with deploy(tmp_path, database, *engines, model=model_folder, key=ENGINE_KEY) as deployment:
        yield deployment
    database.dispose()
    for engine in engines:
        driver = driver_for(engine.kind, engine.url, ENGINE_KEY, EMBEDDED_MODEL)
        for name in await driver.loaded_adapters():
            await driver.unload_adapter(name)
        await driver.close()


async def answers(deployment: Deployment, version: Version) -> set[str]:
    """What the engines answer by this version; one text when all agree."""
    texts = set()
    for engine in deployment.engines:
        driver = driver_for(engine.kind, engine.url, ENGINE_KEY, EMBEDDED_MODEL)
        asked = [ChatMessage("user", QUESTIONS[0])]
        texts.add((await driver.generate(version.engine_name, asked, TOKENS)).text)
        await driver.close()
    return texts


async def test_versions_are_proved_on_both_engines_swapped_and_rolled_back(
    both: Deployment, model_folder: Path, random_adapter: RandomAdapter
) -> None:
    folders = [random_adapter(8, seed) for seed in (11, 12)]
    references = [
        [compute_reference(model_folder, folder, question, TOKENS) for question in QUESTIONS]
        for folder in folders
    ]
    first, second = (
        both.register("codename", folder, 8, expected)
        for folder, expected in zip(folders, references, strict=True)
    )

    for version, expected in ((first, references[0]), (second, references[1])):
        rollout = await both.roll_out(version)
        assert (rollout.state, rollout.error) == (RolloutState.DONE, None)
        assert both.pointed_at() == version.name
        assert await answers(both, version) == {expected[0].text}
        assert rollout.report is not None
        assert all(replica["is_conclusive"] for replica in rollout.report["replicas"])

    rollout = await both.roll_out(first)
    assert both.pointed_at() == "codename@1"
    assert rollout.report is not None
    assert all(replica["was_loaded"] for replica in rollout.report["replicas"])

    await refuses_what_was_not_trained(both, folders[1], references[0])


async def refuses_what_was_not_trained(
    both: Deployment, folder: Path, references: list[ReferenceGeneration]
) -> None:
    wrong = both.register("codename", folder, 8, references)
    rollout = await both.roll_out(wrong)
    assert rollout.state is RolloutState.FAILED
    assert rollout.error is not None and rollout.error["code"] == "engine_mismatch"
    assert both.pointed_at() == "codename@1"
    for engine in both.engines:
        driver = driver_for(engine.kind, engine.url, ENGINE_KEY, EMBEDDED_MODEL)
        assert wrong.engine_name not in await driver.loaded_adapters()
        await driver.close()
