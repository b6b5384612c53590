"""Our own gateway as it really runs.

One worker, a database, a key, an adapter behind an alias, the traffic log on (one request in ten asks for it)
and one request in a hundred traced to an OTLP endpoint.
"""

from __future__ import annotations

import secrets
import shutil
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Final

from sqlalchemy import insert

from loraway import schema
from loraway.database import Database, bump_revision

ALIAS: Final = "bench"
_BASE_MODEL: Final = "bench-engine"


@dataclass(frozen=True, slots=True)
class PreparedGateway:
    """What to start, and what it needs."""

    port: int
    api_key: str
    command: list[str]
    environment: dict[str, str]
    pass_fds: tuple[int, ...]
    close: Callable[[], None]


def prepare(folder: Path, engine_port: int) -> PreparedGateway:
    """A data folder with one project, one key, one ready replica and one adapter that is loaded there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    api_key = f"sk-{secrets.token_urlsafe(32)}"
    database = Database(f"sqlite:///{folder / 'loraway.db'}")
    database.migrate()
    _fill(database, api_key, engine_port)
    database.dispose()
    listening = socket.create_server(("127.0.0.1", 0), backlog=4096)
    listening.set_inheritable(True)
    return PreparedGateway(
        port=listening.getsockname()[1],
        api_key=api_key,
        command=[sys.executable, "-m", "gateway.server", "--fd", str(listening.fileno())],
        environment={
            "LORAWAY_CONFIG": str(folder / "none.toml"),
            "LORAWAY_DATA_DIR": str(folder),
            "LORAWAY_TELEMETRY__OTLP_ENDPOINT": f"http://127.0.0.1:{engine_port}",
            "LORAWAY_TELEMETRY__SAMPLE_RATIO": "0.01",
        },
        pass_fds=(listening.fileno(),),
        close=listening.close,
    )


def _fill(database: Database, api_key: str, engine_port: int) -> None:
    now = time.time()
    digest = blake2b(api_key.encode(), digest_size=16).digest()
    rows = (
        (schema.projects, {"id": "proj_bench", "name": "bench", "created_at": now}),
        (
            schema.api_keys,
            {
                "id": "key_bench",
                "project_id": "proj_bench",
                "name": "bench",
                "digest": digest,
                "hint": api_key[-4:],
                "created_at": now,
            },
        ),
        (
            schema.base_models,
            {
                "name": _BASE_MODEL,
                "path": "none",
                "revision": "0" * 64,
                "template_sha256": "0" * 64,
                "created_at": now,
            },
        ),
        (
            schema.replicas,
            {
                "id": "replica-bench",
                "url": f"http://127.0.0.1:{engine_port}",
                "engine": "vllm",
                "base_model": _BASE_MODEL,
                "state": "ready",
                "adapter_slots": 8,
                "created_at": now,
                "seen_at": now,
            },
        ),
        (
            schema.adapters,
            {
                "id": "adapter-bench",
                "project_id": "proj_bench",
                "name": ALIAS,
                "base_model": _BASE_MODEL,
                "next_number": 2,
                "created_at": now,
            },
        ),
        (
            schema.versions,
            {
                "id": "version-bench",
                "adapter_id": "adapter-bench",
                "number": 1,
                "engine_name": _BASE_MODEL,  # what the fake engine says that it is
                "folder": "none",
                "rank": 16,
                "manifest": {},
                "state": "serving",
                "created_at": now,
            },
        ),
        (
            schema.aliases,
            {"project_id": "proj_bench", "name": ALIAS, "version_id": "version-bench", "updated_at": now},
        ),
        (
            schema.residencies,
            {
                "replica_id": "replica-bench",
                "version_id": "version-bench",
                "state": "loaded",
                "updated_at": now,
            },
        ),
    )
    with database.write() as connection:
        for table, values in rows:
            connection.execute(insert(table).values(values))
        bump_revision(connection)
