"""Children of `loraway up`: started, started again when they end, and stopped in order.

A child dies with its supervisor however that ends: the kernel sends it SIGTERM then.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from engines.launch.process import tethered

#: A child that lived this long was well; its next restart is not delayed.
HEALTHY_SECONDS = 20.0
LONGEST_DELAY_SECONDS = 30.0


class Process(Protocol):
    """One run of a child."""

    async def wait(self) -> int:
        """Its exit status, once it ended (negative: the signal that ended it)."""
        ...

    async def stop(self) -> None:
        """End it: politely first, for certain at last."""
        ...


class Child(Protocol):
    """Something the supervisor keeps running."""

    name: str

    async def start(self) -> Process:
        """Start it once more."""
        ...


class Supervised:
    """Keeps one child running; owns its current process.

    `report` is called with a line for the operator at each unexpected end.
    """

    def __init__(self, child: Child, report: Callable[[str], None]) -> None:
        self.child = child
        self._report = report
        self._process: Process | None = None
        self._is_stopping = False

    async def run(self) -> None:
        """Start the child and start it again each time it ends, with a growing delay while it fails early."""
        delay_seconds = 0.5
        while not self._is_stopping:
            started = time.monotonic()
            self._process = await self.child.start()
            status = await self._process.wait()
            if self._is_stopping:
                return
            was_healthy = time.monotonic() - started > HEALTHY_SECONDS
            delay_seconds = 0.5 if was_healthy else min(delay_seconds * 2, LONGEST_DELAY_SECONDS)
            self._report(f"{self.child.name} {describe_exit(status)}; starting it again")
            await asyncio.sleep(delay_seconds)

    async def stop(self) -> None:
        """End the child for good."""
        self._is_stopping = True
        if self._process is not None:
            await self._process.stop()


class ServiceChild:
    """One of our own processes, `python -m MODULE ARGUMENTS`, its output in a log file."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        grace_seconds: float,
    ) -> None:
        self.name = name
        self._command = tuple(command)
        self._environment = dict(environment)
        self._log = log
        self._grace_seconds = grace_seconds

    async def start(self) -> Process:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *tethered(self._command, signal.SIGTERM),
                env=self._environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return ServiceProcess(process, self._grace_seconds)


class ServiceProcess:
    """A running `ServiceChild`."""

    def __init__(self, process: asyncio.subprocess.Process, grace_seconds: float) -> None:
        self._process = process
        self._grace_seconds = grace_seconds

    async def wait(self) -> int:
        return await self._process.wait()

    async def stop(self) -> None:
        if self._process.returncode is not None:
            return
        self._process.terminate()
        try:
            await asyncio.wait_for(self._process.wait(), self._grace_seconds)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


def describe_exit(status: int) -> str:
    """An exit status in words."""
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"ended with status {status}"
