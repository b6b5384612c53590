"""A real `loraway up` in a process of its own, with all that it starts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import httpx
import openai
import psutil

T = TypeVar("T")


def eventually(read: Callable[[], T], *, within_seconds: float, what: str) -> T:
    """The first true value that `read` gives; fails with `what` when there is none in time."""
    deadline = time.monotonic() + within_seconds
    while time.monotonic() < deadline:
        value = read()
        if value:
            return value
        time.sleep(0.1)
    raise AssertionError(f"not within {within_seconds:.0f} s: {what}")


class RunningLoraway:
    """Starts `loraway up`, knows its URL and key, stops it with Ctrl-C."""

    def __init__(self, data_dir: Path, model_path: Path, engines: str, *options: str) -> None:
        self.data_dir = data_dir
        self.output = data_dir / "up.out"
        environment = {
            **os.environ,
            "LORAWAY_DATA_DIR": str(data_dir),
            "LORAWAY_ENGINE__MODEL_PATH": str(model_path),
            "LORAWAY_ENGINE__DTYPE": "float32",
            "LORAWAY_CONTROLLER__PORT": "0",
        }
        command = [
            sys.executable,
            "-m",
            "loraway.cli.main",
            "up",
            "--engine",
            engines,
            "--port",
            "0",
            *options,
        ]
        data_dir.mkdir(parents=True, exist_ok=True)
        (data_dir / "run" / "connection.json").unlink(missing_ok=True)
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )

    def wait_ready(self, within_seconds: float = 240) -> None:
        """Until it has said that everything is ready."""

        def is_ready() -> bool:
            if self.process.poll() is not None:
                raise AssertionError(f"loraway up ended: {self.output.read_text()[-3000:]}")
            return (self.data_dir / "run" / "connection.json").exists()

        eventually(is_ready, within_seconds=within_seconds, what="loraway up is ready")
        saved = json.loads((self.data_dir / "run" / "connection.json").read_text())
        self.url, self.api_key = saved["url"], saved["api_key"]
        self.client = openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=self.api_key, max_retries=0, timeout=120
        )
        self.http = httpx.Client(
            base_url=self.url, headers={"authorization": f"Bearer {self.api_key}"}, timeout=120
        )

    def ask(self, model: str, question: str, max_tokens: int = 24) -> str:
        """A greedy answer."""
        answer = self.client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": question}],
            max_tokens=max_tokens,
            temperature=0,
        )
        return answer.choices[0].message.content or ""

    def command(self, *arguments: str) -> str:
        """What a `loraway` command prints."""
        return self.run(sys.executable, "-m", "loraway.cli.main", *arguments)

    def run(self, *command: str, timeout_seconds: float = 300) -> str:
        """What a command that talks to this gateway prints, errors too."""
        done = subprocess.run(
            command,
            env={**os.environ, "LORAWAY_URL": self.url, "LORAWAY_API_KEY": self.api_key, "COLUMNS": "160"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_seconds,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def processes(self) -> list[psutil.Process]:
        """Everything it started that is alive."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def engine_processes(self) -> list[psutil.Process]:
        """The processes of its engines."""
        marks = ("vllm_cpu_server", "sglang.launch_server", "sglang::")
        return [p for p in self.processes() if any(mark in " ".join(_command_line(p)) for mark in marks)]

    def stop(self) -> list[psutil.Process]:
        """Ctrl-C; what is still alive after it has ended."""
        if self.process.poll() is not None:
            return []
        started = self.processes()
        self.process.send_signal(signal.SIGINT)
        self.process.wait(timeout=60)
        return [p for p in started if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
