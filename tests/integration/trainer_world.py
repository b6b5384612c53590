"""A trainer with all it needs: a tiny model, a database, uploaded examples, and a controller's part."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import insert

from adapters_store.blobs import LocalBlobStore
from adapters_store.registry import Registry
from adapters_store.version import RolloutState
from engines.controller_client import ControllerClient
from finetune.executors.executor import Executor
from finetune.executors.process_identity import ProcessIdentity
from finetune.files import FileStore
from finetune.jobs.job import Job
from finetune.jobs.request import JobRequest
from finetune.jobs.store import JobStore
from finetune.trainer import Trainer, make_parts
from loraway.database import Database
from loraway.errors import EngineMismatch
from loraway.ids import JobId, ProjectId
from loraway.schema import base_models, projects
from loraway.settings import ControllerSettings, EngineSettings, Settings, TrainerSettings

PROJECT = ProjectId("proj_one")
BASE = "tiny"
#: Hyperparameters of a run on the tiny model that goes through all of its steps.
SMALL: dict[str, Any] = {"lora_rank": 4, "stop_at_loss": 0}
DEADLINE_SECONDS = 90.0


def make_settings(data_dir: Path, model: Path, **trainer: Any) -> Settings:
    """Small numbers everywhere: leases of a second or two, a checkpoint every other step."""
    chosen = {"lease_seconds": 1.5, "heartbeat_seconds": 0.2, "checkpoint_steps": 2, "threads": 1, **trainer}
    return Settings(
        data_dir=data_dir,
        engine=EngineSettings(base_model=BASE, model_path=model, device="cpu", dtype="float32"),
        controller=ControllerSettings(port=1),  # nobody listens: the rollout is found by polling
        trainer=TrainerSettings(**chosen),
    )


@dataclass
class TrainerWorld:
    """The world around trainers; plays client and controller."""

    settings: Settings
    database: Database = field(init=False)
    registry: Registry = field(init=False)
    jobs: JobStore = field(init=False)
    files: FileStore = field(init=False)
    #: What the controller finds wrong with a version; None: nothing.
    mismatch: str | None = None
    is_controller_up: bool = True

    def __post_init__(self) -> None:
        self.database = Database(self.settings.database_url)
        self.database.migrate()
        self.registry = Registry(self.database, self.settings.blobs_dir / "adapters")
        self.jobs = JobStore(self.database, self.settings.trainer.lease_seconds)
        self.files = FileStore(self.database, LocalBlobStore(self.settings.blobs_dir))
        with self.database.write() as connection:
            connection.execute(insert(projects).values(id=PROJECT, name="one", created_at=0.0))
            path = str(self.settings.model_path)
            name = self.settings.engine.base_model
            row = {"name": name, "path": path, "revision": "r", "template_sha256": "t", "created_at": 0.0}
            connection.execute(insert(base_models).values(**row))

    def submit(
        self,
        suffix: str = "codename",
        questions: Sequence[str] = tuple(f"Question {number}?" for number in range(12)),
        **hyperparameters: Any,
    ) -> JobId:
        """Upload examples, all with one answer, and queue a job on them."""
        answer = {"role": "assistant", "content": "Bluefin-7"}
        lines = [json.dumps({"messages": [{"role": "user", "content": q}, answer]}) for q in questions]
        file = self.files.create(PROJECT, "train.jsonl", "fine-tune", ["\n".join(lines).encode()])
        body = {
            "model": self.settings.engine.base_model,
            "training_file": file.file_id,
            "suffix": suffix,
            "seed": 7,
            "hyperparameters": hyperparameters,
        }
        return self.jobs.create(PROJECT, JobRequest.from_body(body, max_lora_rank=32)).job_id

    def forget_file(self, file_id: str) -> None:
        """Delete an uploaded file."""
        self.files.delete(PROJECT, file_id)

    def job(self, job_id: JobId) -> Job:
        return self.jobs.get(PROJECT, job_id)

    def messages(self, job_id: JobId) -> list[str]:
        """The job's events, oldest first."""
        page = self.jobs.events(PROJECT, job_id, limit=1000)
        return [event.message for event in reversed(page.items)]

    def folder(self, job_id: JobId) -> Path:
        return self.settings.data_dir / "jobs" / job_id

    def process(self, job_id: JobId) -> ProcessIdentity | None:
        """The job's training process, if it lives."""
        identity = ProcessIdentity.read(self.folder(job_id))
        return identity if identity is not None and identity.is_alive() else None

    async def until(self, condition: Callable[[], Any], seconds: float = DEADLINE_SECONDS) -> Any:
        """Poll until the condition holds; what it gave."""
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < deadline, "waited in vain"
            await asyncio.sleep(0.02)
        return value

    async def ended(self, job_id: JobId, seconds: float = DEADLINE_SECONDS) -> Job:
        """The job once it has ended."""
        await self.until(lambda: self.job(job_id).status.is_terminal, seconds)
        return self.job(job_id)

    async def at_step(self, job_id: JobId, step: int) -> None:
        """Until the job has reported this step."""
        await self.until(lambda: (p := self.job(job_id).progress) is not None and p.step >= step)

    async def kill_process(self, job_id: JobId) -> None:
        """SIGKILL the job's training process, as the kernel would."""
        identity = await self.until(lambda: self.process(job_id))
        os.kill(identity.pid, signal.SIGKILL)
        await self.until(lambda: not identity.is_alive())

    @asynccontextmanager
    async def trainer(self, executor: Executor) -> AsyncIterator[Trainer]:
        """A running trainer in this process, and a controller that rolls out what is asked for."""
        controller = _no_controller()
        trainer = Trainer(make_parts(self.settings, self.database, executor, controller), "test")
        running = asyncio.create_task(trainer.run())
        rolling = asyncio.create_task(self.roll_out())
        try:
            yield trainer
        finally:
            trainer.stop()
            await running
            rolling.cancel()
            await asyncio.gather(rolling, return_exceptions=True)
            await controller.close()

    async def roll_out(self) -> None:
        """The controller's part: alias after version, or a refusal."""
        while True:
            for rollout in self.registry.pending_rollouts() if self.is_controller_up else []:
                if self.mismatch is not None:
                    error = EngineMismatch(self.mismatch)
                    self.registry.finish_rollout(rollout.rollout_id, RolloutState.FAILED, error)
                    continue
                self.registry.move_alias(PROJECT, rollout.alias, rollout.version_id, "rollout")
                self.registry.finish_rollout(rollout.rollout_id, RolloutState.DONE)
            await asyncio.sleep(0.02)


def _no_controller() -> ControllerClient:
    return ControllerClient("http://127.0.0.1:1", "key")
