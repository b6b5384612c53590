"""A real gateway on a real socket, with its whole control plane, in the test's own event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import orjson
from sqlalchemy import insert, update
from uvicorn.config import Config
from uvicorn.server import ServerState

from gateway.app import create_app
from gateway.dataplane.plane import DataPlane
from gateway.dataplane.protocol import ClientConnection
from gateway.dataplane.sweep import Sweep
from gateway.keys import KeyStore, ensure_default_project
from gateway.parts import GatewayParts
from gateway.worker import running_parts
from loraway import schema
from loraway.database import Database, bump_revision
from loraway.settings import Settings

BASE = "tiny"
ENGINE_NAME = "codename@1.aaaaaa"


@dataclass(slots=True)
class Gateway:
    """A running gateway and the ways to talk to it."""

    port: int
    key: str
    parts: GatewayParts
    plane: DataPlane
    connections: set[ClientConnection]
    client: httpx.AsyncClient

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def raw(self, data: bytes) -> bytes:
        """Send bytes and read until the gateway closes."""
        reader, writer = await self.connect()
        writer.write(data)
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        return answer

    def request(self, body: Any, *headers: str, path: str = "/v1/chat/completions") -> bytes:
        """A request's bytes, with the key."""
        payload = body if isinstance(body, bytes) else orjson.dumps(body)
        lines = [
            f"POST {path} HTTP/1.1",
            "Host: gateway",
            f"Authorization: Bearer {self.key}",
            "Content-Type: application/json",
            f"Content-Length: {len(payload)}",
            *headers,
        ]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + payload

    async def set_replicas(self, *ports: int, state: str = "ready", loaded: bool = True) -> None:
        """These engines, and only these, are the fleet."""
        database = self.parts.database

        def write() -> int:
            with database.write() as connection:
                connection.execute(schema.residencies.delete())
                connection.execute(update(schema.replicas).values(state="gone"))
                for port in ports:
                    values = {
                        "url": f"http://127.0.0.1:{port}",
                        "engine": "vllm",
                        "base_model": BASE,
                        "state": state,
                        "adapter_slots": 4,
                        "created_at": 0.0,
                    }
                    replica_id = f"replica-{port}"
                    connection.execute(schema.replicas.delete().where(schema.replicas.c.id == replica_id))
                    connection.execute(insert(schema.replicas).values(id=replica_id, **values))
                    if loaded:
                        connection.execute(
                            insert(schema.residencies).values(
                                replica_id=replica_id,
                                version_id="version-1",
                                state="loaded",
                                updated_at=0.0,
                            )
                        )
                bump_revision(connection)
            return 0

        await asyncio.to_thread(write)
        wanted = {f"replica-{port}" for port in ports}
        deadline = asyncio.get_running_loop().time() + 10
        assert await self.parts.snapshots.wait_for(
            lambda snapshot: (
                {replica.replica_id for replica in snapshot.replicas.get(BASE, ())} == wanted
                and all(replica.is_ready == (state == "ready") for replica in snapshot.replicas.get(BASE, ()))
                and all(bool(replica.loaded) == loaded for replica in snapshot.replicas.get(BASE, ()))
            ),
            deadline,
        )


def settings_for(folder: Path, **gateway: Any) -> Settings:
    return Settings(
        data_dir=folder,
        gateway={"snapshot_poll_seconds": 0.01, **gateway},
        engine={"base_model": BASE},
        controller={"port": 1},
    )


def fill_database(settings: Settings) -> str:
    """A project with a key, a base model and an adapter of one version; returns the key."""
    database = Database(settings.database_url)
    database.migrate()
    project = ensure_default_project(database)
    key, _ = KeyStore(database).create(project, "test")
    version = {
        "id": "version-1",
        "adapter_id": "adapter-1",
        "number": 1,
        "engine_name": ENGINE_NAME,
        "folder": "none",
        "rank": 8,
        "manifest": {},
        "state": "serving",
        "created_at": 0.0,
    }
    base = {"name": BASE, "path": "x", "revision": "x", "template_sha256": "x", "created_at": 0.0}
    adapter = {"project_id": project, "name": "codename", "base_model": BASE, "next_number": 2}
    alias = {"project_id": project, "name": "codename", "version_id": "version-1", "updated_at": 0.0}
    with database.write() as connection:
        connection.execute(insert(schema.base_models).values(base))
        connection.execute(insert(schema.adapters).values(id="adapter-1", created_at=0.0, **adapter))
        connection.execute(insert(schema.versions).values(version))
        connection.execute(insert(schema.aliases).values(alias))
        bump_revision(connection)
    database.dispose()
    return key


@asynccontextmanager
async def running_gateway(settings: Settings, key: str) -> AsyncIterator[Gateway]:
    async with running_parts(settings, 0) as (parts, plane):
        sweep = Sweep(settings.gateway.timeouts)
        config = Config(create_app(parts), lifespan="off", log_config=None, access_log=False)
        config.load()
        state = ServerState()
        server = await asyncio.get_running_loop().create_server(
            lambda: ClientConnection(plane, sweep.connections, config, state, {}), "127.0.0.1", 0
        )
        sweep.start()
        port = server.sockets[0].getsockname()[1]
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}",
            headers={"authorization": f"Bearer {key}"},
            trust_env=False,
            timeout=20,
        ) as client:
            yield Gateway(port, key, parts, plane, sweep.connections, client)
        server.close()
        for connection in list(sweep.connections):
            connection.transport.abort()
        sweep.stop()
        await eventually(lambda: not state.tasks)


async def eventually(holds: Callable[[], Any], seconds: float = 10.0) -> None:
    """Poll until it holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it never came about"
        await asyncio.sleep(0.01)
