"""Starts gateway workers that share one listening socket, and starts them again when they die.

`python -m gateway.server` serves; `--fd N --worker K` is one worker on a socket that its parent opened.
"""

from __future__ import annotations

import argparse
import ctypes
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from types import FrameType
from typing import Final

from gateway.worker import DRAIN_SECONDS, run_worker
from loraway.database import Database
from loraway.settings import Settings, load_settings
from loraway.telemetry import configure_logging

_LOG = logging.getLogger(__name__)

_BACKLOG: Final = 4096
#: A worker that dies sooner than this after its start is started again only after a pause.
_STEADY_SECONDS: Final = 5.0
_PAUSE_SECONDS: Final = 1.0
_LOOK_SECONDS: Final = 0.1
_PR_SET_PDEATHSIG: Final = 1


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT with `settings.gateway.workers` processes."""
    database = Database(settings.database_url)
    database.migrate()
    database.dispose()
    listening = bind(settings)
    if settings.gateway.workers == 1:
        run_worker(settings, listening)
    else:
        WorkerGroup(settings, listening).run()


def bind(settings: Settings) -> socket.socket:
    """The socket that clients connect to."""
    address = (settings.gateway.host, settings.gateway.port)
    family = socket.AF_INET6 if ":" in settings.gateway.host else socket.AF_INET
    return socket.create_server(address, family=family, backlog=_BACKLOG)


class WorkerGroup:
    """Owns the worker processes. Their settings come from the same file and environment as the parent's."""

    def __init__(self, settings: Settings, listening: socket.socket) -> None:
        self._listening = listening
        self._listening.set_inheritable(True)
        self._workers: list[subprocess.Popen[bytes]] = []
        self._started_at: list[float] = []
        self._count = settings.gateway.workers
        self._stopping = threading.Event()

    def run(self) -> None:
        """Until a signal; then every worker finishes its answers."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        for worker in range(self._count):
            self._workers.append(self._start(worker))
            self._started_at.append(time.monotonic())
        try:
            while not self._stopping.wait(_LOOK_SECONDS):
                self._restart_dead()
        finally:
            self._stop()

    def _restart_dead(self) -> None:
        for worker, process in enumerate(self._workers):
            if process.poll() is None:
                continue
            lived_seconds = time.monotonic() - self._started_at[worker]
            _LOG.error("worker %d ended with %d and is started again", worker, process.returncode)
            if lived_seconds < _STEADY_SECONDS and self._stopping.wait(_PAUSE_SECONDS):
                return
            self._workers[worker] = self._start(worker)
            self._started_at[worker] = time.monotonic()

    def _start(self, worker: int) -> subprocess.Popen[bytes]:
        fd = self._listening.fileno()
        command = [sys.executable, "-m", "gateway.server", "--fd", str(fd), "--worker", str(worker)]
        # A session of its own: a Ctrl-C reaches the parent alone, which then stops the workers in order.
        return subprocess.Popen(
            [*command, "--parent", str(os.getpid())], pass_fds=(fd,), start_new_session=True
        )

    def _stop(self) -> None:
        for process in self._workers:
            process.terminate()
        deadline = time.monotonic() + DRAIN_SECONDS + 5
        for process in self._workers:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stopping.set()


def main() -> None:
    """The command line of this module."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--fd", type=int, help="serve on this listening socket, as one worker")
    arguments.add_argument("--worker", type=int, default=0, help="the worker's number")
    arguments.add_argument("--parent", type=int, help="end when this process does")
    given = arguments.parse_args()
    configure_logging("gateway")
    settings = load_settings()
    if given.fd is None:
        serve(settings)
        return
    if given.parent is not None:
        _end_with(given.parent)
    run_worker(settings, socket.socket(fileno=given.fd), given.worker)


def _end_with(parent: int) -> None:
    """Have the kernel send SIGTERM when the parent ends, however it ends."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
        raise OSError(ctypes.get_errno(), "prctl failed")
    if os.getppid() != parent:  # it ended before the line above
        sys.exit("the parent is gone")


if __name__ == "__main__":
    main()
