"""What `loraway up` promises of its children, on real processes."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import psutil

from loadtest.running import eventually
from loraway.cli.supervision import ServiceChild, Supervised, describe_exit

SLEEP = "import time\nprint('up', flush=True)\ntime.sleep(600)"


def child(tmp_path: Path, source: str) -> ServiceChild:
    return ServiceChild("service", [sys.executable, "-c", source], os.environ, tmp_path / "service.log", 5)


async def test_a_child_that_ends_is_started_again_and_said_so(tmp_path: Path) -> None:
    reports: list[str] = []
    supervised = Supervised(child(tmp_path, "print('up'); raise SystemExit(3)"), reports.append)
    running = asyncio.create_task(supervised.run())
    log = tmp_path / "service.log"
    await asyncio.to_thread(
        eventually,
        lambda: log.exists() and log.read_text().count("up") >= 2,
        within_seconds=30,
        what="started again",
    )
    await supervised.stop()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert reports[0] == "service ended with status 3; starting it again"


async def test_stopping_ends_the_child_and_starts_no_other(tmp_path: Path) -> None:
    reports: list[str] = []
    supervised = Supervised(child(tmp_path, SLEEP), reports.append)
    running = asyncio.create_task(supervised.run())
    log = tmp_path / "service.log"
    await asyncio.to_thread(
        eventually, lambda: log.exists() and "up" in log.read_text(), within_seconds=30, what="started"
    )
    await supervised.stop()
    await asyncio.wait_for(running, 10)
    assert reports == []


def test_a_child_dies_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    source = f"""
import asyncio, os, sys
from pathlib import Path
from loraway.cli.supervision import ServiceChild, Supervised
log = Path({str(tmp_path / "s.log")!r})
child = ServiceChild("s", [sys.executable, "-c", {SLEEP!r}], os.environ, log, 5)
asyncio.run(Supervised(child, print).run())
"""
    supervisor = subprocess.Popen([sys.executable, "-c", source])
    log = tmp_path / "s.log"
    try:
        eventually(lambda: log.exists() and "up" in log.read_text(), within_seconds=30, what="started")
        (service,) = psutil.Process(supervisor.pid).children()
    finally:
        supervisor.kill()
        supervisor.wait()
    eventually(lambda: not service.is_running(), within_seconds=10, what="the child is gone")


def test_an_exit_is_described_in_words() -> None:
    assert describe_exit(-9) == "was ended by SIGKILL"
    assert describe_exit(1) == "ended with status 1"
