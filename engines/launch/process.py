"""A local engine as a process: started, waited for until it generates, stopped with all its children."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import httpx

from engines.engine import wire_model
from engines.launch.catalogue import command_for
from engines.launch.launcher import Command, LaunchSpec
from loraway.errors import EngineUnreachable

_TETHER = Path(__file__).with_name("tether.py")
_POLL_SECONDS = 0.1
_GENERATION_TIMEOUT_SECONDS = 60.0
#: vLLM and SGLang finish running requests when asked to end; a stream may take this long.
_GRACE_SECONDS = 10.0


class EngineProcess:
    """Owns one run of one engine: the process, its group, its log.

    The engine runs in a session of its own, so a Ctrl-C at the terminal reaches it only through us, and it is
    killed when the thread that called `start` ends (see `tether.py`): start it from a thread that stays.
    """

    def __init__(self, spec: LaunchSpec, command: Command | None = None) -> None:
        """`command` takes the place of the one that the launcher for this kind and device makes."""
        self.spec = spec
        self._command = command or command_for(spec)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return self.spec.url

    @property
    def pid(self) -> int:
        """Id of the engine's main process, which leads its process group."""
        return self._started.pid

    @property
    def returncode(self) -> int | None:
        """Its exit status (negative: the signal that ended it); None while it runs."""
        self._collect_if_ended()
        return self._started.returncode

    async def start(self) -> None:
        """Start the engine. It is not ready yet when this returns."""
        self.spec.log_path.parent.mkdir(parents=True, exist_ok=True)
        self.spec.cache_dir.mkdir(parents=True, exist_ok=True)
        self._process = self._spawn()

    async def wait_ready(self, deadline_seconds: float) -> None:
        """Return once the engine is healthy and has generated a token with the base model.

        Raises `EngineUnreachable` when it ends before that or takes longer than `deadline_seconds`.
        """
        headers = {"authorization": f"Bearer {self.spec.api_key}"}
        try:
            async with asyncio.timeout(deadline_seconds):
                async with httpx.AsyncClient(base_url=self.url, headers=headers, trust_env=False) as client:
                    while not (await _is_healthy(client) and await self._generates(client)):
                        self._raise_if_ended()
                        await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError:
            raise EngineUnreachable(
                f"The {self.spec.kind} engine was not ready within {deadline_seconds:.0f} s."
                f" Its log ends with: {self._last_log_line()}"
            ) from None

    async def wait(self) -> int:
        """Its exit status, once it has ended and nothing of its group is left."""
        loop = asyncio.get_running_loop()
        if self._started.returncode is None:
            has_ended = asyncio.Event()
            descriptor = os.pidfd_open(self.pid)
            try:
                loop.add_reader(descriptor, has_ended.set)
                await has_ended.wait()
            finally:
                loop.remove_reader(descriptor)
                os.close(descriptor)
            self._collect_if_ended()
        return self._started.returncode

    async def stop(self, grace_seconds: float = _GRACE_SECONDS) -> None:
        """End the engine: SIGTERM, and after `grace_seconds` SIGKILL for its whole group."""
        if self._process is None or self.returncode is not None:
            return
        os.kill(self.pid, signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_seconds):
                await self.wait()
        except TimeoutError:
            self.kill()
            await self.wait()

    def kill(self) -> None:
        """SIGKILL for the engine's whole group, now."""
        if self._process is not None and self._process.returncode is None:
            os.killpg(self.pid, signal.SIGKILL)

    @property
    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the engine was not started")
        return self._process

    def _spawn(self) -> subprocess.Popen[bytes]:
        with self.spec.log_path.open("ab") as log:
            return subprocess.Popen(
                tethered(self._command.arguments, signal.SIGKILL),
                env={**os.environ, **self._command.environment, "PYTHONSAFEPATH": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _collect_if_ended(self) -> None:
        """Once the main process has ended: kill what is left of its group, then collect it.

        In this order: until it is collected nobody else can get its id, so the group is certainly ours.
        """
        process = self._started
        if process.returncode is not None:
            return
        if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    async def _generates(self, client: httpx.AsyncClient) -> bool:
        """Whether a real generation by the base model succeeds now."""
        question = {
            "model": wire_model(self.spec.kind, self.spec.base_model, None),
            "messages": [{"role": "user", "content": "Hello"}],
            "max_tokens": 1,
        }
        try:
            answer = await client.post(
                "/v1/chat/completions", json=question, timeout=_GENERATION_TIMEOUT_SECONDS
            )
        except httpx.TransportError:
            return False
        if answer.status_code != httpx.codes.OK:
            return False
        return int(answer.json()["usage"]["completion_tokens"]) == 1

    def _raise_if_ended(self) -> None:
        if self.returncode is not None:
            raise EngineUnreachable(
                f"The {self.spec.kind} engine ended with status {self.returncode} before it was ready."
                f" Its log ends with: {self._last_log_line()}"
            )

    def _last_log_line(self) -> str:
        lines = self.spec.log_path.read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line for line in reversed(lines) if line.strip()), "(it is empty)")


def tethered(command: Sequence[str], number: signal.Signals) -> list[str]:
    """`command`, run so that the kernel sends it this signal when we end (see `tether.py`)."""
    return [sys.executable, "-I", "-S", str(_TETHER), str(os.getpid()), str(int(number)), *command]


async def _is_healthy(client: httpx.AsyncClient) -> bool:
    try:
        answer = await client.get("/health", timeout=_GENERATION_TIMEOUT_SECONDS)
    except httpx.TransportError:
        return False
    return answer.status_code == httpx.codes.OK
