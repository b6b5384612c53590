"""The gateway as processes: several workers, a worker that dies, a shutdown in the middle of a stream."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import func, insert, select

from loraway import schema
from loraway.database import Database, bump_revision
from tests.integration.dataplane.running_gateway import BASE, ENGINE_NAME, eventually
from tests.integration.dataplane.scripted_engine import (
    STREAM_END,
    STREAM_HEAD,
    Received,
    ScriptedEngine,
    chunk_json,
    event,
)

MESSAGES = [{"role": "user", "content": "Hi"}]
ROOT = Path(__file__).parents[3]


class GatewayProcess:
    """`python -m gateway.server` on a port of its own."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, key: str, database: Database) -> None:
        self.process = process
        self.port = port
        self.key = key
        self.database = database

    def client(self) -> httpx.AsyncClient:
        """A client whose connections are its own, so that it may reach another worker than the last one."""
        headers = {"authorization": f"Bearer {self.key}"}
        return httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{self.port}", headers=headers, trust_env=False, timeout=20
        )

    async def ask(self, **fields: Any) -> httpx.Response:
        async with self.client() as client:
            body = {"model": "codename", "messages": MESSAGES, **fields}
            return await client.post("/v1/chat/completions", json=body)

    async def stop(self) -> int:
        if self.process.returncode is None:
            self.process.terminate()
        return await asyncio.wait_for(self.process.wait(), 40)


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@asynccontextmanager
async def gateway_process(
    folder: Path, filled: tuple[Path, str], engine: ScriptedEngine, workers: int
) -> AsyncIterator[GatewayProcess]:
    shutil.copytree(filled[0], folder, dirs_exist_ok=True)
    database = Database(f"sqlite:///{folder / 'loraway.db'}")
    with database.write() as connection:
        replica = {"engine": "vllm", "base_model": BASE, "adapter_slots": 4, "created_at": 0.0}
        url = f"http://127.0.0.1:{engine.port}"
        connection.execute(insert(schema.replicas).values(id="replica-1", url=url, state="ready", **replica))
        loaded = {"replica_id": "replica-1", "version_id": "version-1", "state": "loaded", "updated_at": 0.0}
        connection.execute(insert(schema.residencies).values(loaded))
        bump_revision(connection)
    environment = {
        **os.environ,
        "LORAWAY_CONFIG": str(folder / "none.toml"),
        "LORAWAY_DATA_DIR": str(folder),
        "LORAWAY_GATEWAY__PORT": "0",
        "LORAWAY_GATEWAY__WORKERS": str(workers),
        "LORAWAY_ENGINE__BASE_MODEL": BASE,
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway.server"),
        env=environment,
        cwd=ROOT,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    port = 0
    while not port:
        line = (await asyncio.wait_for(process.stderr.readline(), 30)).decode()
        assert line, "the gateway ended at its start"
        if " serves on 127.0.0.1:" in line:
            port = int(line.rsplit(":", 1)[1])
    drain = asyncio.ensure_future(process.stderr.read())
    running = GatewayProcess(process, port, filled[1], database)
    try:
        yield running
    finally:
        await running.stop()
        await drain
        database.dispose()


@pytest.mark.parametrize("workers", [1, 2])
async def test_any_number_of_workers_behaves_the_same(
    tmp_path: Path, filled: tuple[Path, str], engine: ScriptedEngine, workers: int
) -> None:
    async with gateway_process(tmp_path, filled, engine, workers) as gateway:
        if workers > 1:
            await eventually(lambda: len(children_of(gateway.process.pid)) == workers)
        answers = await asyncio.gather(*(gateway.ask(store=True) for _ in range(20)))
        unknown = await gateway.ask(model="codenam")

        assert {answer.status_code for answer in answers} == {200}
        assert {answer.headers["x-loraway-model"] for answer in answers} == {"codename@1"}
        assert len({answer.headers["x-request-id"] for answer in answers}) == 20
        assert unknown.status_code == 404
        with gateway.database.read() as connection:
            assert connection.execute(select(func.count()).select_from(schema.completions)).scalar() == 20
        assert await gateway.stop() == 0


async def test_worker_that_dies_is_started_again(
    tmp_path: Path, filled: tuple[Path, str], engine: ScriptedEngine
) -> None:
    async with gateway_process(tmp_path, filled, engine, 2) as gateway:
        await eventually(lambda: len(children_of(gateway.process.pid)) == 2)
        before = set(children_of(gateway.process.pid))
        victim = min(before)
        os.kill(victim, signal.SIGKILL)
        await eventually(lambda: set(children_of(gateway.process.pid)) - before, 20)
        await eventually(lambda: len(set(children_of(gateway.process.pid)) - {victim}) == 2, 20)
        assert (await gateway.ask()).status_code == 200


async def test_workers_end_with_their_parent_however_it_ends(
    tmp_path: Path, filled: tuple[Path, str], engine: ScriptedEngine
) -> None:
    async with gateway_process(tmp_path, filled, engine, 2) as gateway:
        await eventually(lambda: len(children_of(gateway.process.pid)) == 2)
        workers = children_of(gateway.process.pid)
        assert (await gateway.ask()).status_code == 200
        gateway.process.kill()
        await gateway.process.wait()
        await eventually(lambda: not any(is_running(worker) for worker in workers), 20)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


async def test_shutdown_lets_a_stream_finish_and_writes_the_log(
    tmp_path: Path, filled: tuple[Path, str], engine: ScriptedEngine
) -> None:
    may_end = asyncio.Event()

    async def script(request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + event(chunk_json(ENGINE_NAME, "Hel")))
        await may_end.wait()
        writer.write(event(chunk_json(ENGINE_NAME, "lo")) + STREAM_END)

    engine.script = script
    async with gateway_process(tmp_path, filled, engine, 1) as gateway:
        body = {"model": "codename", "messages": MESSAGES, "stream": True, "store": True}
        async with (
            gateway.client() as client,
            client.stream("POST", "/v1/chat/completions", json=body) as stream,
        ):
            lines = stream.aiter_lines()
            assert "Hel" in await anext(lines)
            gateway.process.terminate()
            await eventually(lambda: not accepts(gateway.port))
            may_end.set()
            rest = "".join([line async for line in lines])
        assert "lo" in rest and rest.endswith("data: [DONE]")
        assert await gateway.stop() == 0
        with gateway.database.read() as connection:
            (stored,) = connection.execute(select(schema.completions.c.response)).scalars()
        assert '"Hello"' in stored


def accepts(port: int) -> bool:
    """Whether somebody listens there."""
    return f":{port:04X} 00000000:0000 0A" in Path("/proc/net/tcp").read_text()
