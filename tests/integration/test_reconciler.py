"""What is loaded where, after restarts, evictions, crashes and joins; on simulated engines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from adapters_store.version import RolloutState
from loadtest.simulator.engine import SimulatedEngine
from loraway.database import Database
from loraway.errors import AdapterNotLoaded, EngineRejected, NoReplicaReady, NotFound
from loraway.ids import VersionId
from tests.integration.deployment import PROJECT, Deployment, deploy, eventually, make_settings

KEY = "engine-key"
SLOTS = 3


@pytest.fixture
def migrated(sqlite_url: str) -> AsyncIterator[Database]:
    database = Database(sqlite_url)
    yield database
    database.dispose()


@pytest.fixture(params=["vllm", "sglang"])
async def one(
    request: pytest.FixtureRequest, tmp_path: Path, migrated: Database
) -> AsyncIterator[Deployment]:
    """One replica with three slots."""
    async with (
        SimulatedEngine(request.param, api_key=KEY, max_loaded_adapters=SLOTS) as engine,
        deploy(tmp_path, migrated, engine, slots=SLOTS) as deployment,
    ):
        yield deployment


async def test_adapters_come_back_after_the_engine_was_killed(one: Deployment) -> None:
    (engine,) = one.engines
    served = await one.serve("codename", "other")
    names = {version.engine_name for version in served}

    await engine.fault("die")
    await eventually(lambda: one.state(engine) == "unhealthy", "the crash is noticed")
    assert one.loaded(engine) == set()
    await engine.fault("restart")

    await eventually(lambda: one.loaded(engine) == names, "both adapters serve again")
    assert set(engine.replica.adapters.resident) == names
    for version in served:
        assert (await one.ask(engine, version)).status_code == 200


async def test_a_restart_between_two_readings_is_noticed_by_what_is_missing(one: Deployment) -> None:
    (engine,) = one.engines
    (version,) = await one.serve("codename")
    loads = engine.replica.counts.loads

    await engine.fault("die")
    await engine.fault("restart")

    await eventually(lambda: engine.replica.counts.loads > loads, "it is loaded again")
    await eventually(lambda: one.loaded(engine) == {version.engine_name}, "it serves again")


async def test_an_adapter_that_is_not_the_trained_one_after_a_restart_does_not_serve(one: Deployment) -> None:
    (engine,) = one.engines
    (version,) = await one.serve("codename")
    await engine.fault("die")
    await eventually(lambda: one.state(engine) == "unhealthy", "the crash is noticed")
    await engine.fault("restart")
    await engine.fault("wrong_adapter")
    await eventually(lambda: one.state(engine) == "ready", "the engine is back")
    await eventually(lambda: engine.replica.counts.unloads > 0, "the wrong adapter is taken off")
    assert one.loaded(engine) == set()

    await engine.fault("clear")
    await eventually(lambda: one.loaded(engine) == {version.engine_name}, "it serves once it is right")


async def test_a_silent_eviction_is_noticed_and_mended(one: Deployment) -> None:
    (engine,) = one.engines
    (version,) = await one.serve("codename")
    loads = engine.replica.counts.loads
    await engine.fault("evict", adapter=version.engine_name)
    await eventually(lambda: engine.replica.counts.loads > loads, "it is loaded again")
    await eventually(lambda: one.loaded(engine) == {version.engine_name}, "it serves again")


async def test_an_engine_never_holds_more_than_its_slots(one: Deployment) -> None:
    (engine,) = one.engines
    (served,) = await one.serve("codename")
    cold = [one.train(f"cold-{index}") for index in range(4)]
    for _ in range(2):
        for version in cold:
            await one.client.load(version.version_id)
            held = one.loaded(engine)
            assert {served.engine_name, version.engine_name} <= held and len(held) <= SLOTS
            assert (await one.ask(engine, version)).status_code == 200
    assert engine.replica.adapters.evictions == 0


async def test_requests_for_a_cold_version_that_come_together_cause_one_load(one: Deployment) -> None:
    (engine,) = one.engines
    version = one.train()
    await asyncio.gather(*(one.client.load(version.version_id) for _ in range(20)))
    assert engine.replica.counts.loads == 1
    assert one.loaded(engine) == {version.engine_name}


async def test_a_cold_version_takes_no_slot_from_what_aliases_point_at(one: Deployment) -> None:
    served = await one.serve("a", "b", "c")
    with pytest.raises(AdapterNotLoaded) as raised:
        await one.client.load(one.train("cold").version_id)
    assert raised.value.retry_after_seconds
    assert one.loaded(one.engines[0]) == {version.engine_name for version in served}


async def test_more_aliases_than_slots_take_turns(one: Deployment) -> None:
    (engine,) = one.engines
    served = await one.serve("a", "b", "c", "d")
    for version in (*served, *served):
        await one.client.load(version.version_id)
        assert version.engine_name in one.loaded(engine)
        assert len(engine.replica.adapters.resident) <= SLOTS
    assert engine.replica.adapters.evictions == 0


async def test_a_cold_load_that_is_refused_says_why(one: Deployment) -> None:
    with pytest.raises(EngineRejected, match="64"):
        await one.client.load(one.train(rank=64).version_id)
    with pytest.raises(NotFound):
        await one.client.load(VersionId("version-none"))


async def test_no_replica_is_told_as_such(one: Deployment) -> None:
    (engine,) = one.engines
    version = one.train()
    await engine.fault("die")
    await eventually(lambda: one.state(engine) == "unhealthy", "the crash is noticed")
    with pytest.raises(NoReplicaReady):
        await one.client.load(version.version_id)


async def test_names_of_ours_without_a_version_are_unloaded_and_others_left(one: Deployment) -> None:
    (engine,) = one.engines
    (version,) = await one.serve("codename")
    path = "/v1/load_lora_adapter" if engine.kind == "vllm" else "/load_lora_adapter"
    async with httpx.AsyncClient(base_url=engine.url, headers={"authorization": f"Bearer {KEY}"}) as client:
        for name in ("gone@1.abcdef", "theirs"):
            body = {"lora_name": name, "lora_path": str(version.path)}
            assert (await client.post(path, json=body)).status_code == 200
    await eventually(
        lambda: set(engine.replica.adapters.resident) == {version.engine_name, "theirs"}, "ours is unloaded"
    )
    assert one.loaded(engine) == {version.engine_name}


async def test_a_controller_that_starts_again_takes_over_what_is_loaded(
    tmp_path: Path, migrated: Database
) -> None:
    async with SimulatedEngine("vllm", api_key=KEY) as engine:
        async with deploy(tmp_path, migrated, engine) as before:
            (version,) = await before.serve("codename")
        counts = engine.replica.counts
        loads, generations = counts.loads, counts.generations
        after = Deployment(before.settings, migrated, before.registry, [engine], tmp_path)
        async with after.running_controller():
            await eventually(lambda: after.state(engine) == "ready", "it is ready")
            assert after.loaded(engine) == {version.engine_name}
            await after.client.load(version.version_id)
            assert (counts.loads, counts.generations) == (loads, generations)


async def test_a_replica_that_joins_gets_what_aliases_point_at(tmp_path: Path, migrated: Database) -> None:
    async with (
        SimulatedEngine("vllm", api_key=KEY) as first,
        SimulatedEngine("sglang", api_key=KEY) as second,
    ):
        async with deploy(tmp_path, migrated, first) as alone:
            (version,) = await alone.serve("codename")
        settings = make_settings(tmp_path, migrated, [first, second], 8)
        both = Deployment(settings, migrated, alone.registry, [first, second], tmp_path)
        async with both.running_controller():
            for engine in both.engines:
                await eventually(
                    lambda engine=engine: both.loaded(engine) == {version.engine_name}, "it serves everywhere"
                )


async def test_a_replica_that_is_not_configured_any_more_is_gone(tmp_path: Path, migrated: Database) -> None:
    async with SimulatedEngine("vllm", api_key=KEY) as first, SimulatedEngine("vllm", api_key=KEY) as second:
        async with deploy(tmp_path, migrated, first, second) as two:
            await two.serve("codename")
        settings = make_settings(tmp_path, migrated, [second], 8)
        one = Deployment(settings, migrated, two.registry, [second], tmp_path)
        async with one.running_controller():
            assert one.state(first) == "gone"
            assert one.loaded(first) == set()


async def test_an_unload_that_waits_for_a_stream_keeps_no_load_waiting(
    tmp_path: Path, migrated: Database
) -> None:
    """SGLang's unload waits for the adapter's running requests: it begins before the slot is needed."""
    async with (
        SimulatedEngine("sglang", api_key=KEY, max_loaded_adapters=SLOTS, inter_token_seconds=0.1) as engine,
        deploy(tmp_path, migrated, engine, slots=SLOTS) as deployment,
    ):
        first, second, third = (deployment.train(f"cold-{index}", references=[]) for index in range(3))
        await deployment.client.load(first.version_id)
        stream = asyncio.create_task(deployment.ask(engine, first, max_tokens=40))
        await eventually(lambda: engine.replica.running == 1, "a request runs on the first")

        await deployment.client.load(second.version_id)
        await deployment.client.load(third.version_id)

        assert not stream.done()
        assert {second.engine_name, third.engine_name} <= deployment.loaded(engine)
        assert (await stream).status_code == 200
        await eventually(
            lambda: set(engine.replica.adapters.resident) == {second.engine_name, third.engine_name},
            "the first is unloaded once its request has ended",
        )
        await deployment.client.load(first.version_id)
        assert first.engine_name in deployment.loaded(engine)
        assert engine.replica.adapters.evictions == 0


async def test_a_version_asked_for_while_it_is_unloaded_comes_back(
    tmp_path: Path, migrated: Database
) -> None:
    async with (
        SimulatedEngine("sglang", api_key=KEY, max_loaded_adapters=SLOTS, inter_token_seconds=0.05) as engine,
        deploy(tmp_path, migrated, engine, slots=SLOTS) as deployment,
    ):
        first, *others = (deployment.train(f"cold-{index}", references=[]) for index in range(SLOTS))
        await deployment.client.load(first.version_id)
        stream = asyncio.create_task(deployment.ask(engine, first, max_tokens=30))
        await eventually(lambda: engine.replica.running == 1, "a request runs on the first")
        for version in others:
            await deployment.client.load(version.version_id)
        await eventually(lambda: first.engine_name not in deployment.loaded(engine), "its unload has begun")

        await deployment.client.load(first.version_id)

        assert (await stream).status_code == 200
        assert first.engine_name in deployment.loaded(engine)
        assert (await deployment.ask(engine, first)).status_code == 200
        assert engine.replica.adapters.evictions == 0


async def test_a_rollout_makes_room_where_cold_versions_fill_the_slots(one: Deployment) -> None:
    for index in range(SLOTS):
        await one.client.load(one.train(f"cold-{index}").version_id)
    rollout = await one.roll_out(one.train())
    assert rollout.state is RolloutState.DONE
    assert one.registry.find(PROJECT, "codename") is not None
    assert one.engines[0].replica.adapters.evictions == 0


async def test_a_rollout_does_not_unload_what_its_alias_serves_until_then(
    tmp_path: Path, migrated: Database
) -> None:
    async with (
        SimulatedEngine("vllm", api_key=KEY, max_loaded_adapters=SLOTS, load_seconds=0.2) as engine,
        deploy(tmp_path, migrated, engine, slots=SLOTS) as deployment,
    ):
        old, *others = await deployment.serve("codename", "b", "c")
        for version in others:
            await deployment.client.load(version.version_id)  # of the targets, "codename" rests the longest
        new = deployment.train()
        rolling = asyncio.create_task(deployment.roll_out(new))
        while deployment.pointed_at() == "codename@1":
            assert old.engine_name in deployment.loaded(engine)
            await asyncio.sleep(0.01)

        assert (await rolling).state is RolloutState.DONE
        assert new.engine_name in deployment.loaded(engine)
        assert engine.replica.adapters.evictions == 0
