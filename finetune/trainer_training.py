"""One job's training as the trainer sees it: a process to start or find again, and events to pass on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from pydantic import BaseModel

from finetune.executors.executor import Executor, RunningJob
from finetune.executors.process_identity import ExitNote
from finetune.jobs.job import JobError
from finetune.trainers.protocol import (
    Event,
    EventReader,
    Failed,
    Message,
    TrainingResult,
    log_tail,
    starts_without_progress,
)
from finetune.trainers.spec import EXIT_INTERRUPTED, EXIT_LOCKED, write_whole
from loraway.errors import LorawayError

#: How soon an event is passed on and an end noticed.
_POLL_SECONDS = 0.03
#: A process that dies this often without getting further is not started again.
MAX_STARTS = 3

Relay = Callable[[Event], Awaitable[None]]


class TrainingFailed(LorawayError):
    """Training cannot succeed."""

    def __init__(self, error: JobError) -> None:
        super().__init__(error.message)
        self.error = error


class _RelayNote(BaseModel):
    """relay.json: how far a job's events have been passed on, kept over restarts of the trainer."""

    offset: int = 0


class Training:
    """Owns the job's training process: at most one, started here or found alive."""

    def __init__(self, job_folder: Path, executor: Executor, relay: Relay) -> None:
        self._folder, self._executor, self._relay = job_folder, executor, relay
        self._reader = EventReader(job_folder, _read_offset(job_folder))
        self._starting: asyncio.Future[RunningJob] | None = None
        self._starts = 0
        self._is_done = False

    async def run(self) -> TrainingResult:
        """Until there is a result: attach, else start; a process that was killed is started again.

        Raises TrainingFailed with what the process said, or with how it died.
        """
        while True:
            result = TrainingResult.read(self._folder)
            process = await self._attach_or_start() if result is None else None
            await self._follow(process)
            result = TrainingResult.read(self._folder)
            if result is not None:
                return result
            assert process is not None
            await self._consider_restart(await process.how_it_ended())

    async def stop(self, grace_seconds: float) -> None:
        """End the process after a checkpoint."""
        process = await self._process()
        if process is not None:
            await process.stop(grace_seconds)

    async def kill(self) -> None:
        """End the process at once."""
        process = await self._process()
        if process is not None:
            await process.kill()

    async def _attach_or_start(self) -> RunningJob:
        process = self._executor.attach(self._folder)
        if process is not None:
            return process
        self._starts += 1
        # Shielded: a cancellation must not lose sight of a process that was just forked.
        self._starting = asyncio.ensure_future(self._executor.start(self._folder))
        return await asyncio.shield(self._starting)

    async def _process(self) -> RunningJob | None:
        """The process to end: the one started last, or the one that holds the job."""
        started = await self._starting if self._starting is not None else None
        if started is not None and started.is_alive():
            return started
        return self._executor.attach(self._folder)

    async def _follow(self, process: RunningJob | None) -> None:
        """Pass events on until the process is done or has ended, and all of them are through."""
        while True:
            is_alive = process is not None and process.is_alive()
            await self._pass_on()
            if not is_alive or self._is_done:
                return
            await asyncio.sleep(_POLL_SECONDS)

    async def _pass_on(self) -> None:
        before = self._reader.offset
        for event in self._reader.read_new():
            if isinstance(event, Failed):
                raise TrainingFailed(JobError(event.code, event.message))
            if event.type == "checkpoint":
                self._starts = 0
            self._is_done = event.type == "done"
            await self._relay(event)
        if self._reader.offset != before:
            note = _RelayNote(offset=self._reader.offset)
            write_whole(_relay_path(self._folder), note.model_dump_json())

    async def _consider_restart(self, end: ExitNote | None) -> None:
        """Return when another start makes sense, else raise TrainingFailed."""
        if end is not None and end.exit_code in (EXIT_LOCKED, EXIT_INTERRUPTED):
            await asyncio.sleep(_POLL_SECONDS)
            return
        how = str(end) if end is not None else "ended while nobody watched"
        if max(self._starts, starts_without_progress(self._folder)) >= MAX_STARTS:
            log = log_tail(self._folder)
            said = f" It last said: {log}" if log else ""
            raise TrainingFailed(
                JobError(
                    "training_process_died",
                    f"The training process died {MAX_STARTS} times in a row at the same point ({how}).{said}",
                )
            )
        await self._relay(
            Message(
                level="warn", text=f"The training process died ({how}); going on from its last checkpoint."
            )
        )


def _relay_path(job_folder: Path) -> Path:
    return job_folder / "relay.json"


def _read_offset(job_folder: Path) -> int:
    try:
        return _RelayNote.model_validate_json(_relay_path(job_folder).read_text()).offset
    except FileNotFoundError:
        return 0
