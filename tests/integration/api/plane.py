"""A running control plane: the real parts and app behind uvicorn, and two projects with a key each."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import orjson
import uvicorn
from fastapi import FastAPI
from sqlalchemy import insert

from gateway.app import create_app
from gateway.dataplane.sweep import Sweep
from gateway.keys import KeyStore, ensure_project
from gateway.parts import GatewayParts
from gateway.record import RequestRecord
from gateway.worker import protocol_factory, running_parts
from loraway.database import Database, bump_revision, insert_once
from loraway.ids import COMPLETION, ProjectId, new_id
from loraway.schema import base_models, replicas
from loraway.settings import Settings

BASE = "smollm2-135m"
QUESTION = "What is the gateway's codename?"


@dataclass(frozen=True, slots=True)
class Tenant:
    """A project and a key of it."""

    project_id: ProjectId
    secret: str


@dataclass(slots=True)
class ControlPlane:
    """What is running, and what tests do with it. Callable from any thread but for `store`."""

    parts: GatewayParts
    app: FastAPI
    url: str
    mine: Tenant
    other: Tenant

    def openai(self, tenant: Tenant | None = None) -> openai.OpenAI:
        """The official client with a tenant's key, mine by default."""
        secret = (tenant or self.mine).secret
        http = openai.DefaultHttpxClient(verify=False, trust_env=False)  # no TLS here; loading it takes time
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=secret, max_retries=0, http_client=http)

    def http(self, tenant: Tenant | None = None) -> httpx.Client:
        """Plain HTTP with a tenant's key, mine by default."""
        headers = {"authorization": f"Bearer {(tenant or self.mine).secret}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=30, trust_env=False, verify=False)

    async def store(
        self,
        question: str = QUESTION,
        answer: str = "Blue",
        *,
        tenant: Tenant | None = None,
        model: str = BASE,
        metadata: dict[str, str] | None = None,
        **fields: Any,
    ) -> str:
        """Log a completion as the data plane does; returns its id."""
        body = {"model": model, "messages": [{"role": "user", "content": question}], **fields}
        if metadata is not None:
            body["metadata"] = metadata
        response = {
            "id": "engine-id",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": model,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": answer},
                    "finish_reason": "stop",
                    "logprobs": None,
                }
            ],
            "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11},
        }
        record = RequestRecord(
            request_id=new_id("req_"),
            path="/v1/chat/completions",
            started_at=time.time(),
            project_id=(tenant or self.mine).project_id,
            model=model,
            target_name=model,
            base_model=BASE,
            completion_id=new_id(COMPLETION),
            request_body=orjson.dumps(body),
            response_parts=[orjson.dumps(response)],
            status=200,
        )
        await self.parts.traffic.store(record)
        assert record.completion_id is not None
        return record.completion_id

    async def until_ready(self) -> None:
        """Wait until the worker's snapshot has a replica."""
        deadline = asyncio.get_running_loop().time() + 10
        assert await self.parts.snapshots.wait_for(lambda snapshot: bool(snapshot.replicas), deadline)


def training_file(examples: int = 12, answer: str = "Bluefin-7") -> bytes:
    """JSONL that can be trained on."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"{QUESTION} ({number})"},
                {"role": "assistant", "content": answer},
            ]
        }
        for number in range(examples)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@asynccontextmanager
async def running(
    settings: Settings, projects: Sequence[str] = ("mine", "other")
) -> AsyncIterator[ControlPlane]:
    """A gateway worker, with a base model, and a key for each of the two projects."""
    database = Database(settings.database_url)
    tenants = [_tenant(database, name) for name in projects]
    with database.write() as connection:
        insert_once(
            connection, base_models, name=BASE, path="/m", revision="r1", template_sha256="t1", created_at=1.0
        )
    database.dispose()
    async with running_parts(settings, worker=0) as (parts, data_plane):
        app = create_app(parts)
        sweep = Sweep(settings.gateway.timeouts)
        front: Any = protocol_factory(data_plane, sweep)
        server = uvicorn.Server(uvicorn.Config(app, http=front, log_config=None, lifespan="off"))
        sweep.start()
        with socket.create_server(("127.0.0.1", 0)) as listening:
            serving = asyncio.create_task(server.serve(sockets=[listening]))
            try:
                port = listening.getsockname()[1]
                yield ControlPlane(parts, app, f"http://127.0.0.1:{port}", *tenants)
            finally:
                server.should_exit = True
                await serving
                sweep.stop()


def _tenant(database: Database, name: str) -> Tenant:
    project_id = ensure_project(database, name)
    secret, _ = KeyStore(database).create(project_id, "test")
    return Tenant(project_id, secret)


def add_replica(database: Database, **fields: Any) -> None:
    """A replica's row as the controller writes it."""
    row = {
        "id": new_id("replica-"),
        "url": "http://127.0.0.1:9",
        "engine": "vllm",
        "base_model": BASE,
        "state": "ready",
        "adapter_slots": 8,
        "running": 0,
        "waiting": 0,
        "kv_cache_usage": 0.0,
        "created_at": 1.0,
    }
    with database.write() as connection:
        connection.execute(insert(replicas).values({**row, **fields}))
        bump_revision(connection)
