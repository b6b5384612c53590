"""An engine's process, with small programs in the place of an engine."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from engines.launch.catalogue import choose_port
from engines.launch.launcher import Command, LaunchSpec
from engines.launch.process import EngineProcess
from loraway.errors import EngineUnreachable

#: A program that starts a child in its group, says both ids in its log, and stays.
WITH_CHILD = """
import os, signal, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
{prepare}
print(os.getpid(), child.pid, flush=True)
signal.pause()
"""

#: A server that is healthy at once; its n-th generation has the n-th of `statuses`, the last one ever after.
HTTP_SERVER = """
import json, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
statuses = {statuses}
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer(200, b"")
    def do_POST(self):
        assert self.headers["authorization"] == "Bearer secret"
        question = json.loads(self.rfile.read(int(self.headers["content-length"])))
        assert question["model"] == "base" and question["max_tokens"] == 1
        print("generation", flush=True)
        status = statuses.pop(0) if len(statuses) > 1 else statuses[0]
        self.answer(status, json.dumps({{"usage": {{"completion_tokens": 1}}}}).encode())
    def answer(self, status, body):
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""

MakeEngine = Callable[[str], EngineProcess]


@pytest.fixture
def make_engine(tmp_path: Path) -> MakeEngine:
    def make(program: str) -> EngineProcess:
        port = choose_port()
        spec = LaunchSpec(
            kind="vllm",
            device="cpu",
            dtype="float32",
            python=Path(sys.executable),
            base_model="base",
            model_path=tmp_path,
            host="127.0.0.1",
            port=port,
            api_key="secret",
            log_path=tmp_path / "engine.log",
            cache_dir=tmp_path / "cache",
            max_loras=1,
            max_cpu_loras=1,
            max_lora_rank=8,
            max_model_len=128,
        )
        return EngineProcess(spec, Command((sys.executable, "-c", program, str(port)), {}))

    return make


def read_ids(log: Path) -> tuple[int, int]:
    """The ids that `WITH_CHILD` has written."""
    deadline = time.monotonic() + 20
    while True:
        words = log.read_text().split() if log.exists() else []
        if len(words) == 2:
            return int(words[0]), int(words[1])
        assert time.monotonic() < deadline
        time.sleep(0.01)


def wait_until_gone(*pids: int) -> None:
    deadline = time.monotonic() + 20
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids):
        assert time.monotonic() < deadline, f"one of {pids} is still there"
        time.sleep(0.01)


async def test_stop_ends_an_engine_that_obeys_and_its_children(make_engine: MakeEngine) -> None:
    engine = make_engine(WITH_CHILD.format(prepare=""))
    await engine.start()
    main, child = read_ids(engine.spec.log_path)
    assert main == engine.pid
    assert engine.returncode is None

    await engine.stop(grace_seconds=20)

    assert engine.returncode == -signal.SIGTERM
    wait_until_gone(main, child)


async def test_stop_kills_the_whole_group_of_an_engine_that_does_not_obey(make_engine: MakeEngine) -> None:
    engine = make_engine(WITH_CHILD.format(prepare="signal.signal(signal.SIGTERM, signal.SIG_IGN)"))
    await engine.start()
    main, child = read_ids(engine.spec.log_path)

    await engine.stop(grace_seconds=0.1)

    assert engine.returncode == -signal.SIGKILL
    wait_until_gone(main, child)


async def test_wait_returns_when_the_engine_is_killed_and_sweeps_what_it_left(
    make_engine: MakeEngine,
) -> None:
    engine = make_engine(WITH_CHILD.format(prepare=""))
    await engine.start()
    main, child = read_ids(engine.spec.log_path)
    waiting = asyncio.create_task(engine.wait())
    await asyncio.sleep(0)

    os.kill(main, signal.SIGKILL)

    assert await asyncio.wait_for(waiting, 20) == -signal.SIGKILL
    wait_until_gone(main, child)


async def test_stop_before_start_and_after_the_end_does_nothing(make_engine: MakeEngine) -> None:
    engine = make_engine("")
    await engine.stop()
    await engine.start()
    assert await engine.wait() == 0
    await engine.stop()
    assert engine.returncode == 0


async def test_ready_only_after_a_real_generation(make_engine: MakeEngine) -> None:
    engine = make_engine(HTTP_SERVER.format(statuses=[500, 503, 200]))
    await engine.start()
    try:
        await engine.wait_ready(20)
        assert engine.spec.log_path.read_text().count("generation") == 3
    finally:
        await engine.stop()


async def test_engine_that_is_healthy_but_never_generates_is_not_ready(make_engine: MakeEngine) -> None:
    engine = make_engine(HTTP_SERVER.format(statuses=[500]))
    await engine.start()
    try:
        with pytest.raises(EngineUnreachable, match="not ready within 2 s"):
            await engine.wait_ready(2)
    finally:
        await engine.stop()


async def test_engine_that_ends_before_it_is_ready_is_reported_with_its_last_words(
    make_engine: MakeEngine,
) -> None:
    engine = make_engine("import sys; sys.exit('no memory left for the model')")
    await engine.start()

    with pytest.raises(EngineUnreachable, match=r"status 1 .* no memory left for the model"):
        await engine.wait_ready(20)


def test_engine_dies_when_its_supervisor_is_killed(tmp_path: Path) -> None:
    supervisor = subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent(
                """
                import asyncio, sys
                from pathlib import Path
                from engines.launch.catalogue import spec_for
                from engines.launch.launcher import Command
                from engines.launch.process import EngineProcess
                from loraway.settings import Settings
                async def main():
                    spec = spec_for("vllm", Settings(data_dir=Path(sys.argv[1])), port=1, api_key="k")
                    sleep = Command((sys.executable, "-c", "import signal; signal.pause()"), {})
                    engine = EngineProcess(spec, sleep)
                    await engine.start()
                    print(engine.pid, flush=True)
                    await engine.wait()
                asyncio.run(main())
                """
            ),
            str(tmp_path),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert supervisor.stdout is not None
    engine_pid = int(supervisor.stdout.readline())
    assert psutil.pid_exists(engine_pid)

    supervisor.kill()
    supervisor.wait()

    wait_until_gone(engine_pid)
