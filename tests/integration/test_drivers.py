"""The drivers over real HTTP: what they make of engines that are slow, broken, gone, or somebody else's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from engines import connection
from engines.drivers import driver_for
from engines.engine import ChatMessage, Engine, EngineKind
from loadtest.simulator.engine import SimulatedEngine
from loraway.errors import EngineRejected, EngineSilent, EngineUnreachable, UpstreamFailed
from tests.integration.deployment import BASE, write_adapter

KEY = "engine-key"
ASKED = [ChatMessage("user", "Hello")]


@pytest.fixture(params=["vllm", "sglang"])
async def simulated(request: pytest.FixtureRequest) -> AsyncIterator[SimulatedEngine]:
    async with SimulatedEngine(request.param, api_key=KEY, max_running=1) as engine:
        yield engine


@pytest.fixture
async def engine(simulated: SimulatedEngine) -> AsyncIterator[Engine]:
    driver = driver_for(simulated.kind, simulated.url, KEY, BASE)
    yield driver
    await driver.close()


async def test_a_refused_connection_is_told_from_silence(
    engine: Engine, simulated: SimulatedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await engine.is_healthy()
    monkeypatch.setattr(connection, "GENERATE_SECONDS", 0.2)
    await simulated.fault("hang_before_first_byte", times=1)
    with pytest.raises(EngineSilent, match=r"did not answer /v1/chat/completions in 0.2 s"):
        await engine.generate(None, ASKED, 1)

    await simulated.fault("die")
    with pytest.raises(EngineUnreachable) as raised:
        await engine.is_healthy()
    assert not isinstance(raised.value, EngineSilent)

    await simulated.fault("restart")
    assert await engine.is_healthy()


async def test_an_engines_error_is_told_with_its_reason(engine: Engine, simulated: SimulatedEngine) -> None:
    await simulated.fault("error_500", times=1)
    with pytest.raises(UpstreamFailed, match="answered 500"):
        await engine.generate(None, ASKED, 1)


async def test_a_wrong_key_is_an_error_and_no_empty_list(simulated: SimulatedEngine) -> None:
    driver = driver_for(simulated.kind, simulated.url, "wrong", BASE)
    with pytest.raises(UpstreamFailed, match="401"):
        await driver.loaded_adapters()
    await driver.close()


async def test_a_load_that_fails_leaves_the_engine_as_it_was(
    engine: Engine, simulated: SimulatedEngine, tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path / "adapter")
    await simulated.fault("fail_load", times=1)
    with pytest.raises(EngineRejected):
        await engine.load_adapter("a@1.abcdef", str(folder))
    assert await engine.loaded_adapters() == {}
    await engine.load_adapter("a@1.abcdef", str(folder))
    assert await engine.loaded_adapters() == {"a@1.abcdef": str(folder)}


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
async def test_a_remote_openai_server_serves_its_base_model_and_no_adapter(kind: EngineKind) -> None:
    async with SimulatedEngine(kind, api_key=KEY) as simulated:
        remote = driver_for("openai", simulated.url, KEY, BASE)
        assert await remote.is_healthy()
        assert await remote.loaded_adapters() == {}
        assert (await remote.generate(None, ASKED, 4)).model == BASE
        with pytest.raises(EngineRejected):
            await remote.load_adapter("a@1.abcdef", "/anywhere")
        with pytest.raises(EngineRejected):
            await remote.generate("a@1.abcdef", ASKED, 4)
        await remote.close()
