"""Where training processes run: a Protocol, implemented by this machine (`local.py`) and others later."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from finetune.executors.process_identity import ExitNote


class RunningJob(Protocol):
    """A training process, alive or not. What it reports is in the job's folder (`finetune.trainers`)."""

    job_folder: Path

    def is_alive(self) -> bool:
        """Whether the process still runs; cheap, asked many times a second."""
        ...

    async def how_it_ended(self) -> ExitNote | None:
        """The exit status of a process that is not alive any more; None where nobody saw it."""
        ...

    async def stop(self, grace_seconds: float) -> None:
        """Have it write a checkpoint and end; kill it after this long. Returns when it is gone."""
        ...

    async def kill(self) -> None:
        """End it and all that it started, now. Returns when it is gone."""
        ...


class Executor(Protocol):
    """Starts training processes that outlive the trainer, and finds them again."""

    async def start(self, job_folder: Path) -> RunningJob:
        """Train the job in this folder; what another process on it still does is left alone (`attach`)."""
        ...

    def attach(self, job_folder: Path) -> RunningJob | None:
        """The process that trains this job now, whoever started it; None when there is none."""
        ...

    async def close(self) -> None:
        """Let go of what the executor itself runs; training processes go on."""
        ...
