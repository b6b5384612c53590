"""The trainer: claims jobs, as many at once as it may, and runs each to its end.

    python -m finetune.trainer

Training itself happens in processes that outlive this one. After a kill the next trainer claims the job once
its lease has run out, attaches to the process if it lives, and else has it go on from its last checkpoint.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from pathlib import Path

from sqlalchemy.exc import OperationalError

from adapters_store.blobs import LocalBlobStore
from adapters_store.registry import Registry
from engines.controller_client import ControllerClient
from engines.launch.hardware import resolve_device
from finetune.datasets.snapshot import DatasetStore
from finetune.executors.executor import Executor
from finetune.executors.local import LocalExecutor
from finetune.files import FileStore
from finetune.jobs.job import Failed, JobError, LeasedJob
from finetune.jobs.lease import LeaseLost
from finetune.jobs.store import JobStore
from finetune.trainer_folders import JobFolders
from finetune.trainer_job import JobRun, TrainerParts
from finetune.trainer_release import Releaser
from loraway.database import Database
from loraway.settings import Settings, load_settings

_log = logging.getLogger(__name__)
_POLL_SECONDS = 0.1
_RETRY_SECONDS = 2.0


class Trainer:
    """Owns the jobs it runs: one task each."""

    def __init__(self, parts: TrainerParts, owner: str) -> None:
        self._parts, self._owner = parts, owner
        self._stopping = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()

    def stop(self) -> None:
        """Take no new jobs, and give those back that run."""
        self._stopping.set()

    async def run(self) -> None:
        """Until `stop`; returns when every job is finished or given back."""
        async with asyncio.TaskGroup() as tasks:
            while not self._stopping.is_set():
                leased = await self._claim() if self._has_room else None
                if leased is not None:
                    task = tasks.create_task(self._run_job(leased))
                    self._running.add(task)
                    task.add_done_callback(self._running.discard)
                    continue
                await self._pause(_POLL_SECONDS)

    @property
    def _has_room(self) -> bool:
        return len(self._running) < self._parts.settings.trainer.concurrency

    async def _claim(self) -> LeasedJob | None:
        try:
            return await asyncio.to_thread(self._parts.jobs.claim, self._owner)
        except OperationalError as error:
            _log.warning("the database does not answer: %s", error.orig)
            await self._pause(_RETRY_SECONDS)
            return None

    async def _run_job(self, leased: LeasedJob) -> None:
        try:
            await JobRun(leased, self._parts, self._stopping).run()
        except LeaseLost as error:
            _log.warning("%s", error.message)
        except OperationalError:
            _log.exception("%s: the database does not answer; the lease runs out", leased.job.job_id)
        except Exception:  # noqa: BLE001 - a job's outermost edge: logged, and said in the job
            _log.exception("%s failed unexpectedly", leased.job.job_id)
            await self._fail(leased)

    async def _fail(self, leased: LeasedJob) -> None:
        error = JobError("internal_error", "Something went wrong inside loraway; see the trainer's log.")
        try:
            await asyncio.to_thread(self._parts.jobs.finish, leased.lease, Failed(error))
        except (LeaseLost, OperationalError):
            _log.exception("%s: its failure could not be noted", leased.job.job_id)

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return


def run(settings: Settings) -> None:
    """Run the trainer until SIGTERM or SIGINT."""
    asyncio.run(_serve(settings))


async def _serve(settings: Settings) -> None:
    database = Database(settings.database_url)
    await asyncio.to_thread(database.migrate)
    controller = ControllerClient.from_settings(settings)
    executor = _make_executor(settings)
    ready = settings.data_dir.resolve() / "run" / "trainer.ready"
    ready.unlink(missing_ok=True)
    trainer = Trainer(make_parts(settings, database, executor, controller), _owner())
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, trainer.stop)
    try:
        await executor.warm_up()
        _announce(ready)
        await trainer.run()
    finally:
        ready.unlink(missing_ok=True)
        await executor.close()
        await controller.close()
        database.dispose()


def make_parts(
    settings: Settings, database: Database, executor: Executor, controller: ControllerClient
) -> TrainerParts:
    """Put a trainer's parts together."""
    files = FileStore(database, LocalBlobStore(settings.blobs_dir), settings.gateway.max_upload_bytes)
    folders = JobFolders(settings.data_dir.resolve() / "jobs", settings.logs_dir)
    folders.remove_ended(database)
    registry = Registry(database, settings.blobs_dir / "adapters")
    return TrainerParts(
        settings=settings,
        jobs=JobStore(database, settings.trainer.lease_seconds),
        datasets=DatasetStore(database, files, settings.blobs_dir / "datasets", settings.trainer),
        folders=folders,
        executor=executor,
        releaser=Releaser(registry, controller),
    )


def _make_executor(settings: Settings) -> LocalExecutor:
    """On a GPU the training process reads the model itself, straight to where it trains."""
    is_cpu = resolve_device(settings.engine.device) == "cpu"
    return LocalExecutor(settings.model_path.resolve() if is_cpu else None)


def _announce(ready: Path) -> None:
    """`loraway up` waits for this file."""
    ready.parent.mkdir(parents=True, exist_ok=True)
    ready.write_text(f"{os.getpid()}\n")


def _owner() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


if __name__ == "__main__":
    run(load_settings())
