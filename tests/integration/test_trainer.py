"""The trainer from claim to live version: real training processes, forked, killed, cancelled and resumed."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from safetensors.torch import load_file

from finetune.executors.local import LocalExecutor
from finetune.jobs.states import JobState
from loraway.ids import JobId
from tests.integration.trainer_world import PROJECT, SMALL, TrainerWorld, make_settings
from tests.tiny_model import make_tiny_model

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def executor(model: Path) -> AsyncIterator[LocalExecutor]:
    executor = LocalExecutor(model)
    await executor.warm_up()
    yield executor
    await executor.close()


@pytest.fixture
def world(tmp_path: Path, model: Path) -> TrainerWorld:
    return TrainerWorld(make_settings(tmp_path, model))


async def test_job_ends_as_a_live_version_with_its_manifest(
    world: TrainerWorld, executor: LocalExecutor
) -> None:
    job_id = world.submit(n_epochs=3, **SMALL)
    async with world.trainer(executor):
        job = await world.ended(job_id)

    assert (job.status, job.error) == (JobState.SUCCEEDED, None)
    assert job.fine_tuned_model == "codename@1"
    version = world.registry.version(job.version_id)
    alias = world.registry.alias(PROJECT, "codename")
    assert alias is not None and alias.version_id == version.version_id
    manifest = version.manifest
    assert (manifest.job_id, manifest.dataset_id, manifest.rank, manifest.seed) == (
        job_id,
        job.dataset_id,
        4,
        7,
    )
    assert len(manifest.template_sha256) == 64 and manifest.libraries["peft"]
    assert manifest.references and manifest.metrics == job.metrics
    assert set(manifest.files) == {"adapter_model.safetensors", "adapter_config.json"}
    assert not world.folder(job_id).exists()


async def test_events_show_each_step_and_end_with_both_scores(
    world: TrainerWorld, executor: LocalExecutor
) -> None:
    job_id = world.submit(n_epochs=3, **SMALL)
    async with world.trainer(executor):
        job = await world.ended(job_id)

    steps = [line for line in world.messages(job_id) if line.startswith("Step ")]
    total = job.progress.total_steps
    assert [line.split(":")[0] for line in steps] == [f"Step {i}/{total}" for i in range(1, total + 1)]
    last = world.messages(job_id)[-1]
    assert last.startswith("codename@1 is live. Held-out loss ")
    assert f"{job.metrics['base_held_out_loss']:.2f} → {job.metrics['held_out_loss']:.2f}" in last
    assert job.metrics["held_out_loss"] < job.metrics["base_held_out_loss"]
    assert job.trained_tokens > 0


async def test_cancelled_job_leaves_no_process_no_folder_and_no_version(
    world: TrainerWorld, executor: LocalExecutor
) -> None:
    job_id = world.submit(n_epochs=1000, **SMALL)
    async with world.trainer(executor):
        await world.at_step(job_id, 2)
        process = world.process(job_id)
        asked = time.monotonic()
        world.jobs.cancel(PROJECT, job_id)
        job = await world.ended(job_id)

    assert job.status is JobState.CANCELLED
    assert time.monotonic() - asked < 5.0
    assert process is not None and not process.is_alive()
    assert not world.folder(job_id).exists()
    assert world.registry.versions(PROJECT, "codename") == []


async def test_cancelling_while_the_rollout_waits_leaves_the_alias_alone(
    world: TrainerWorld, executor: LocalExecutor
) -> None:
    world.is_controller_up = False
    job_id = world.submit(n_epochs=1, **SMALL)
    async with world.trainer(executor):
        await world.until(world.registry.pending_rollouts)
        world.jobs.cancel(PROJECT, job_id)
        job = await world.ended(job_id)
        world.is_controller_up = True

    assert job.status is JobState.CANCELLED
    assert world.registry.pending_rollouts() == []
    assert world.registry.alias(PROJECT, "codename") is None


async def test_killed_training_process_goes_on_from_its_checkpoint_to_the_same_adapter(
    world: TrainerWorld, executor: LocalExecutor
) -> None:
    undisturbed, killed = (
        world.submit("undisturbed", n_epochs=20, **SMALL),
        world.submit("killed", n_epochs=20, **SMALL),
    )
    async with world.trainer(executor):
        await world.ended(undisturbed)
        for step in (5, 15):
            await world.at_step(killed, step)
            await world.kill_process(killed)
        job = await world.ended(killed)

    assert job.status is JobState.SUCCEEDED
    messages = world.messages(killed)
    assert sum("killed by SIGKILL" in line for line in messages) == 2
    assert any(line.startswith("Training goes on from step ") for line in messages)
    assert _weights(world, killed).keys() == _weights(world, undisturbed).keys()
    for name, tensor in _weights(world, undisturbed).items():
        assert tensor.equal(_weights(world, killed)[name]), name


async def test_process_that_dies_again_and_again_fails_the_job_and_says_how(
    world: TrainerWorld, executor: LocalExecutor
) -> None:
    world.settings.trainer.checkpoint_steps = 10_000
    job_id = world.submit(n_epochs=1000, **SMALL)
    async with world.trainer(executor):
        for _ in range(3):
            await world.kill_process(job_id)
        job = await world.ended(job_id)

    assert job.status is JobState.FAILED
    assert job.error.code == "training_process_died"
    assert "killed by SIGKILL, as the kernel does when memory runs out" in job.error.message
    assert not world.folder(job_id).exists()


async def test_refused_rollout_fails_the_job_with_what_differs(
    world: TrainerWorld, executor: LocalExecutor
) -> None:
    world.mismatch = "Token 2 differs: the replica serves the base model."
    job_id = world.submit(n_epochs=1, **SMALL)
    async with world.trainer(executor):
        job = await world.ended(job_id)

    assert job.status is JobState.FAILED
    assert job.error.code == "engine_mismatch"
    assert world.mismatch in job.error.message
    assert world.registry.alias(PROJECT, "codename") is None


async def test_stopped_trainer_gives_the_job_back_and_the_next_one_goes_on(
    world: TrainerWorld, executor: LocalExecutor
) -> None:
    job_id = world.submit(n_epochs=40, **SMALL)
    async with world.trainer(executor):
        await world.at_step(job_id, 5)
        process = world.process(job_id)
    assert process is not None and not process.is_alive()
    assert world.job(job_id).status is JobState.QUEUED
    reached = world.job(job_id).progress.step

    async with world.trainer(executor):
        job = await world.ended(job_id)

    assert job.status is JobState.SUCCEEDED
    found = re.search(r"Training goes on from step (\d+)/", "\n".join(world.messages(job_id)))
    assert found is not None and int(found[1]) >= reached


async def test_two_jobs_with_one_suffix_at_once_both_become_versions(
    world: TrainerWorld, executor: LocalExecutor
) -> None:
    world.settings.trainer.concurrency = 2
    first, second = world.submit(n_epochs=20, **SMALL), world.submit(n_epochs=20, **SMALL)
    async with world.trainer(executor):
        jobs = [await world.ended(first), await world.ended(second)]

    assert {job.fine_tuned_model for job in jobs} == {"codename@1", "codename@2"}
    assert len(world.registry.versions(PROJECT, "codename")) == 2


async def test_job_whose_file_is_gone_fails_and_names_it(
    world: TrainerWorld, executor: LocalExecutor
) -> None:
    job_id = world.submit(n_epochs=1, **SMALL)
    file_id = world.job(job_id).request.training_file
    world.forget_file(file_id)
    async with world.trainer(executor):
        job = await world.ended(job_id)

    assert job.status is JobState.FAILED
    assert file_id in job.error.message


def _weights(world: TrainerWorld, job_id: JobId) -> dict[str, object]:
    version = world.registry.version(world.job(job_id).version_id)
    return load_file(version.path / "adapter_model.safetensors")
