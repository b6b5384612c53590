"""Training processes on this machine, forked from a warm process.

A job's process is in a session of its own and outlives both the warm process and the trainer. Whoever looks
for it later finds it by `process.json` in the job's folder; the lock there keeps a second one away.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

from finetune.executors.process_identity import ExitNote, ProcessIdentity
from finetune.executors.warm_protocol import READY
from finetune.trainers.spec import Dtype
from loraway.errors import Unavailable

#: Importing everything on a cold disk, beside an engine that starts.
_WARM_UP_SECONDS = 180.0
_FORK_SECONDS = 30.0
_POLL_SECONDS = 0.02
_KILL_SECONDS = 10.0
#: A process that has ended is reaped, and its end noted, a moment later; not at all when nobody watched.
_NOTE_SECONDS = 2.0


class LocalJob:
    """A training process of this machine."""

    def __init__(self, job_folder: Path, identity: ProcessIdentity) -> None:
        self.job_folder = job_folder
        self._identity = identity

    def is_alive(self) -> bool:
        return self._identity.is_alive()

    async def how_it_ended(self) -> ExitNote | None:
        deadline = time.monotonic() + _NOTE_SECONDS
        while (note := ExitNote.read(self.job_folder, self._identity.pid)) is None:
            if time.monotonic() > deadline:
                return None
            await asyncio.sleep(_POLL_SECONDS)
        return note

    async def stop(self, grace_seconds: float) -> None:
        self._signal(signal.SIGTERM)
        if not await self._is_gone_within(grace_seconds):
            await self.kill()

    async def kill(self) -> None:
        self._signal(signal.SIGKILL)
        if not await self._is_gone_within(_KILL_SECONDS):
            raise Unavailable(f"Training process {self._identity.pid} does not end, not even by SIGKILL.")

    def _signal(self, number: signal.Signals) -> None:
        """To the process's whole group: it leads its session, so the group's number is its own."""
        if self.is_alive():
            try:
                os.killpg(self._identity.pid, number)
            except ProcessLookupError:
                return

    async def _is_gone_within(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while self.is_alive():
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(_POLL_SECONDS)
        return True


class LocalExecutor:
    """Owns the warm process: starts it, talks to it (one request at a time), starts it again when it dies."""

    def __init__(self, preload: Path | None, dtype: Dtype = "float32") -> None:
        self._arguments = [str(preload), dtype] if preload is not None else []
        self._warm: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()

    async def warm_up(self) -> None:
        """Start the warm process and wait until it can fork."""
        async with self._lock:
            await self._living_warm_process()

    async def start(self, job_folder: Path) -> LocalJob:
        async with self._lock:
            warm = await self._living_warm_process()
            assert warm.stdin is not None
            warm.stdin.write(os.fsencode(job_folder.resolve()) + b"\n")
            pid = int(await self._read_line(warm, _FORK_SECONDS))
        identity = ProcessIdentity.of(pid)
        # One that has ended already is told from a living one by start time 0.
        return LocalJob(job_folder, identity or ProcessIdentity(pid=pid, start_ticks=0, boot_id=""))

    def attach(self, job_folder: Path) -> LocalJob | None:
        identity = ProcessIdentity.read(job_folder)
        return LocalJob(job_folder, identity) if identity is not None and identity.is_alive() else None

    async def close(self) -> None:
        async with self._lock:
            warm, self._warm = self._warm, None
            if warm is None or warm.returncode is not None:
                return
            assert warm.stdin is not None
            warm.stdin.close()
            try:
                await asyncio.wait_for(warm.wait(), _KILL_SECONDS)
            except TimeoutError:
                warm.kill()
                await warm.wait()

    async def _living_warm_process(self) -> asyncio.subprocess.Process:
        if self._warm is not None and self._warm.returncode is None:
            return self._warm
        self._warm = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "finetune.executors.warm",
            *self._arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=_environment(),
        )
        line = await self._read_line(self._warm, _WARM_UP_SECONDS)
        if line != READY:
            raise Unavailable(f"The warm training process began with {line[:80]!r}.")
        return self._warm

    async def _read_line(self, warm: asyncio.subprocess.Process, seconds: float) -> str:
        assert warm.stdout is not None
        try:
            line = await asyncio.wait_for(warm.stdout.readline(), seconds)
        except TimeoutError as error:
            warm.kill()
            raise Unavailable("The warm training process does not answer.") from error
        if not line:
            await warm.wait()
            raise Unavailable(f"The warm training process ended ({warm.returncode}); see the trainer's log.")
        return line.decode().strip()


def _environment() -> dict[str, str]:
    """One thread until a child sets its own number; threads that wait sleep, for the engine beside them."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "PYTHONUNBUFFERED": "1",
    }
