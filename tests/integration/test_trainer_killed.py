"""The trainer's own process, killed with SIGKILL at any moment, again and again."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from finetune.executors.process_identity import ProcessIdentity
from finetune.jobs.states import JobState
from loraway.ids import JobId
from loraway.settings import Settings
from tests.integration.trainer_world import PROJECT, SMALL, TrainerWorld, make_settings
from tests.tiny_model import make_tiny_model

_KILLS = 3


async def test_job_survives_kills_of_its_trainer_and_ends_as_one_version(tmp_path: Path) -> None:
    # given: a job that takes some seconds, and the same one undisturbed to compare with
    model = make_tiny_model(tmp_path / "tiny")
    world = TrainerWorld(make_settings(tmp_path / "data", model, checkpoint_steps=5))
    rolling = asyncio.create_task(world.roll_out())
    disturbed = world.submit("disturbed", n_epochs=50, **SMALL)
    draw = random.Random(11)

    # when: its trainer is killed while it prepares, trains or releases
    attempts = 0
    for _ in range(_KILLS):
        trainer = await _start_trainer(world.settings, tmp_path)
        await world.until(lambda seen=attempts: _is_taken_up(world, disturbed, seen))
        attempts = world.job(disturbed).attempts
        await asyncio.sleep(draw.uniform(0.0, 1.5))  # not to wait for something: to hit any moment
        trainer.kill()
        await trainer.wait()
    assert attempts >= 2, "at least one kill has found the job running"
    undisturbed = world.submit("undisturbed", n_epochs=50, **SMALL)
    trainer = await _start_trainer(world.settings, tmp_path)
    job, other = await world.ended(disturbed), await world.ended(undisturbed)

    # then: one version, live, with the very weights of the undisturbed job, and nothing left behind
    assert (job.status, other.status) == (JobState.SUCCEEDED, JobState.SUCCEEDED)
    assert [version.number for version in world.registry.versions(PROJECT, "disturbed")] == [1]
    alias = world.registry.alias(PROJECT, "disturbed")
    assert alias is not None and alias.version_id == job.version_id
    ours, theirs = _weights(world, disturbed), _weights(world, undisturbed)
    assert ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in ours)

    trainer.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(trainer.wait(), 20) == 0
    assert list((world.settings.data_dir / "jobs").iterdir()) == []
    assert not (world.settings.data_dir / "run" / "trainer.ready").exists()
    rolling.cancel()
    await asyncio.gather(rolling, return_exceptions=True)


def _is_taken_up(world: TrainerWorld, job_id: JobId, seen_attempts: int) -> bool:
    """Whether a trainer has claimed the job anew, or nothing is left to claim."""
    job = world.job(job_id)
    return job.attempts > seen_attempts or job.status.is_terminal


async def _start_trainer(settings: Settings, folder: Path) -> asyncio.subprocess.Process:
    environment = {
        **os.environ,
        "LORAWAY_CONFIG": str(folder / "none.toml"),
        "LORAWAY_DATA_DIR": str(settings.data_dir),
        "LORAWAY_ENGINE__MODEL_PATH": str(settings.engine.model_path),
        "LORAWAY_ENGINE__BASE_MODEL": settings.engine.base_model,
        "LORAWAY_ENGINE__DEVICE": "cpu",
        "LORAWAY_ENGINE__DTYPE": "float32",
        "LORAWAY_CONTROLLER__PORT": "1",
        "LORAWAY_TRAINER__LEASE_SECONDS": "1.5",
        "LORAWAY_TRAINER__HEARTBEAT_SECONDS": "0.2",
        "LORAWAY_TRAINER__CHECKPOINT_STEPS": "5",
        "LORAWAY_TRAINER__THREADS": "1",
    }
    return await asyncio.create_subprocess_exec(sys.executable, "-m", "finetune.trainer", env=environment)


def _weights(world: TrainerWorld, job_id: JobId) -> dict[str, object]:
    version = world.registry.version(world.job(job_id).version_id)
    return load_file(version.path / "adapter_model.safetensors")


@pytest.fixture(autouse=True)
def _no_training_process_is_left(tmp_path: Path) -> object:
    """Whatever the test did, its training processes end with it."""
    yield
    for note in (tmp_path / "data" / "jobs").glob("*/process.json"):
        identity = ProcessIdentity.read(note.parent)
        if identity is not None and identity.is_alive():
            os.killpg(identity.pid, signal.SIGKILL)
