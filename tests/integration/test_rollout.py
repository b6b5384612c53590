"""Hot swap on simulated engines: on the replicas first, proved, then the alias; all or none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from adapters_store.version import RolloutState
from loadtest.simulator.engine import SimulatedEngine
from loraway.database import Database
from tests.integration.deployment import PROJECT, Deployment, deploy, eventually

KEY = "engine-key"


@pytest.fixture
async def two(tmp_path: Path, sqlite_url: str) -> AsyncIterator[Deployment]:
    """A vLLM and an SGLang replica behind one base model."""
    database = Database(sqlite_url)
    async with (
        SimulatedEngine("vllm", api_key=KEY) as vllm,
        SimulatedEngine("sglang", api_key=KEY) as sglang,
        deploy(tmp_path, database, vllm, sglang) as deployment,
    ):
        yield deployment
    database.dispose()


async def test_a_version_is_on_every_replica_before_its_alias_moves(
    tmp_path: Path, database: Database
) -> None:
    async with (
        SimulatedEngine("vllm", api_key=KEY) as vllm,
        SimulatedEngine("sglang", api_key=KEY) as sglang,
        deploy(tmp_path, database, vllm, sglang) as deployment,
    ):
        version = deployment.train()
        rollout = await deployment.roll_out(version)

        assert (rollout.state, rollout.error) == (RolloutState.DONE, None)
        assert deployment.pointed_at() == "codename@1"
        for engine in (vllm, sglang):
            assert deployment.loaded(engine) == {version.engine_name}
            assert (await deployment.ask(engine, version)).status_code == 200
        assert rollout.report is not None
        assert {replica["engine"] for replica in rollout.report["replicas"]} == {"vllm", "sglang"}
        for replica in rollout.report["replicas"]:
            assert replica["references"] == 2 and replica["tokens"] == 16
            assert replica["is_conclusive"] and replica["largest_difference"] < 1e-3


@pytest.mark.parametrize("failing", [0, 1])
async def test_a_load_that_one_replica_refuses_is_undone_on_the_other(two: Deployment, failing: int) -> None:
    (old,) = await two.serve("codename")
    await two.engines[failing].fault("fail_load")
    new = two.train()

    rollout = await two.roll_out(new)

    assert rollout.state is RolloutState.FAILED
    assert rollout.error is not None and rollout.error["code"] == "engine_rejected"
    assert two.engines[failing].kind in str(rollout.error["message"])
    assert two.pointed_at() == "codename@1"
    for engine in two.engines:
        assert two.loaded(engine) == {old.engine_name}
        assert new.engine_name not in engine.replica.adapters.resident
        assert (await two.ask(engine, old)).status_code == 200


async def test_a_replica_that_serves_the_base_in_the_adapters_name_is_found_out(two: Deployment) -> None:
    (old,) = await two.serve("codename")
    new = two.train()
    await two.engines[1].fault("wrong_adapter", adapter=new.engine_name)

    rollout = await two.roll_out(new)

    assert rollout.state is RolloutState.FAILED
    assert rollout.error is not None and rollout.error["code"] == "engine_mismatch"
    assert "sglang" in str(rollout.error["message"]) and "Token 1" in str(rollout.error["message"])
    assert two.pointed_at() == "codename@1"
    assert [two.loaded(engine) for engine in two.engines] == [{old.engine_name}] * 2


async def test_a_version_that_answers_other_than_it_was_trained_to_is_refused(two: Deployment) -> None:
    other = two.train("other")
    wrong = [two.reference(other.path, "What is it?")]
    rollout = await two.roll_out(two.train(references=wrong))

    assert rollout.state is RolloutState.FAILED
    assert two.pointed_at() is None
    assert [two.loaded(engine) for engine in two.engines] == [set(), set()]


async def test_a_rank_above_the_engines_limit_fails_with_the_engines_reason(two: Deployment) -> None:
    rollout = await two.roll_out(two.train(rank=64))
    assert rollout.state is RolloutState.FAILED
    assert rollout.error is not None and "64" in str(rollout.error["message"])


async def test_rollback_needs_no_load_because_the_old_version_stays(two: Deployment) -> None:
    first = two.train()
    second = two.train()
    await two.roll_out(first)
    await two.roll_out(second)
    assert two.pointed_at() == "codename@2"
    loads = [engine.replica.counts.loads for engine in two.engines]

    target = two.registry.rollback_target(PROJECT, "codename")
    rollout = await two.roll_out(target)

    assert target.version_id == first.version_id and rollout.state is RolloutState.DONE
    assert two.pointed_at() == "codename@1"
    assert rollout.report is not None
    assert all(replica["was_loaded"] for replica in rollout.report["replicas"])
    assert all(replica["references"] == 1 for replica in rollout.report["replicas"])
    for engine, before in zip(two.engines, loads, strict=True):
        assert two.loaded(engine) == {first.engine_name, second.engine_name}
        assert len(engine.replica.adapters.resident) == 2
        assert engine.replica.counts.loads <= before + 1  # "already loaded" may be asked for


async def test_rollouts_of_one_alias_end_in_the_order_they_were_asked_for(two: Deployment) -> None:
    trained = [two.train() for _ in range(4)]
    ids = [two.registry.request_rollout(PROJECT, "codename", version.version_id) for version in trained]
    for rollout_id in ids:
        await eventually(
            lambda rollout_id=rollout_id: two.registry.rollout(rollout_id).state is RolloutState.DONE,
            "the rollout is done",
        )
    finished = [two.registry.rollout(rollout_id).finished_at or 0.0 for rollout_id in ids]
    assert finished == sorted(finished)
    assert two.pointed_at() == "codename@4"


async def test_a_replica_that_dies_during_a_rollout_gets_the_version_when_it_is_back(
    tmp_path: Path, sqlite_url: str
) -> None:
    database = Database(sqlite_url)
    async with (
        SimulatedEngine("vllm", api_key=KEY, ttft_seconds=0.5) as dying,
        SimulatedEngine("sglang", api_key=KEY) as living,
        deploy(tmp_path, database, dying, living) as deployment,
    ):
        version = deployment.train()
        rolling = asyncio.create_task(deployment.roll_out(version))
        await eventually(lambda: dying.replica.running > 0, "the proof has begun")
        await dying.fault("die")

        rollout = await rolling
        assert rollout.state is RolloutState.DONE
        assert rollout.report is not None and len(rollout.report["replicas"]) == 1
        assert deployment.loaded(living) == {version.engine_name}

        await dying.fault("restart")
        await eventually(
            lambda: deployment.loaded(dying) == {version.engine_name}, "the replica has it again"
        )
    database.dispose()


async def test_a_rollout_waits_for_a_replica_and_fails_when_none_comes(two: Deployment) -> None:
    for engine in two.engines:
        await engine.fault("die")
    for engine in two.engines:
        await eventually(lambda engine=engine: two.state(engine) == "unhealthy", "it is noticed")
    rollout = await two.roll_out(two.train())
    assert rollout.state is RolloutState.FAILED
    assert rollout.error is not None and rollout.error["code"] == "no_replica_ready"
