"""The routing snapshot follows the database, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from sqlalchemy import insert, text, update

from gateway.keys import KeyStore, digest_of, ensure_project
from gateway.routing.snapshot import Snapshot
from gateway.routing.source import SnapshotSource
from loraway import schema
from loraway.database import Database, bump_revision
from loraway.settings import Settings

VERSION = {
    "adapter_id": "adapter-1",
    "folder": "none",
    "rank": 8,
    "manifest": {},
    "state": "serving",
    "created_at": 0.0,
}
REPLICA = {"engine": "sglang", "base_model": "tiny", "adapter_slots": 4, "created_at": 0.0}


def fill(database: Database) -> str:
    """Two versions of an adapter behind an alias, a replica, a key; returns the key."""
    project = ensure_project(database, "mine", stores_by_default=True)
    key, _ = KeyStore(database).create(project, "test")
    with database.write() as connection:
        connection.execute(
            insert(schema.adapters).values(
                id="adapter-1",
                project_id=project,
                name="codename",
                base_model="tiny",
                next_number=3,
                created_at=0.0,
            )
        )
        for number in (1, 2):
            connection.execute(
                insert(schema.versions).values(
                    id=f"version-{number}", number=number, engine_name=f"codename@{number}.aaaaaa", **VERSION
                )
            )
        connection.execute(
            insert(schema.aliases).values(
                project_id=project, name="codename", version_id="version-1", updated_at=0.0
            )
        )
        connection.execute(
            insert(schema.replicas).values(
                id="replica-1", url="http://127.0.0.1:9001", state="ready", **REPLICA
            )
        )
        bump_revision(connection)
    return key


@pytest.fixture
async def source(database: Database, tmp_path: Path) -> AsyncIterator[SnapshotSource]:
    settings = Settings(data_dir=tmp_path, gateway={"snapshot_poll_seconds": 0.01})  # type: ignore[arg-type]
    source = SnapshotSource(database, settings)
    await source.start()
    yield source
    await source.stop()


async def seen(source: SnapshotSource, predicate: Callable[[Snapshot], bool]) -> bool:
    return await source.wait_for(predicate, asyncio.get_running_loop().time() + 10)


async def test_snapshot_holds_keys_names_and_replicas(database: Database, source: SnapshotSource) -> None:
    key = await asyncio.to_thread(fill, database)
    digest = digest_of(key.encode())
    assert await seen(source, lambda snapshot: digest in snapshot.keys and bool(snapshot.replicas))

    snapshot = source.current
    owner = snapshot.keys[digest]
    assert owner.stores_by_default
    names = {name: target.name for name, target in snapshot.adapters[owner.project_id].items()}
    assert names == {"codename": "codename@1", "codename@1": "codename@1", "codename@2": "codename@2"}
    assert snapshot.resolve(owner.project_id, "tiny") is snapshot.bases["tiny"]
    (replica,) = snapshot.replicas["tiny"]
    assert (replica.kind, replica.host, replica.port) == ("sglang", "127.0.0.1", 9001)
    assert replica.is_ready and not replica.loaded


async def test_each_change_is_seen(database: Database, source: SnapshotSource) -> None:
    key = await asyncio.to_thread(fill, database)
    digest = digest_of(key.encode())
    await seen(source, lambda snapshot: digest in snapshot.keys and bool(snapshot.replicas))
    project_id = source.current.keys[digest].project_id

    def change(*statements: object) -> None:
        with database.write() as connection:
            for statement in statements:
                connection.execute(statement)  # type: ignore[call-overload]
            bump_revision(connection)

    residency = {"replica_id": "replica-1", "version_id": "version-2", "state": "loaded", "updated_at": 0.0}
    await asyncio.to_thread(change, insert(schema.residencies).values(residency))
    assert await seen(source, lambda snapshot: "version-2" in snapshot.replicas["tiny"][0].loaded)

    await asyncio.to_thread(change, update(schema.aliases).values(version_id="version-2"))
    assert await seen(source, lambda s: s.adapters[project_id]["codename"].name == "codename@2")

    await asyncio.to_thread(
        change, update(schema.versions).where(schema.versions.c.number == 1).values(state="retired")
    )
    assert await seen(source, lambda snapshot: "codename@1" not in snapshot.adapters[project_id])

    await asyncio.to_thread(change, update(schema.replicas).values(state="unhealthy"))
    assert await seen(source, lambda snapshot: not snapshot.replicas["tiny"][0].is_ready)

    await asyncio.to_thread(change, update(schema.replicas).values(state="gone"))
    assert await seen(source, lambda snapshot: "tiny" not in snapshot.replicas)

    await asyncio.to_thread(change, update(schema.api_keys).values(revoked_at=1.0))
    assert await seen(source, lambda snapshot: digest not in snapshot.keys)


async def test_change_is_seen_soon(database: Database, source: SnapshotSource) -> None:
    started = time.monotonic()
    key = await asyncio.to_thread(fill, database)
    assert await seen(source, lambda snapshot: digest_of(key.encode()) in snapshot.keys)
    assert time.monotonic() - started < 5


async def test_wait_ends_at_its_deadline(source: SnapshotSource) -> None:
    deadline = asyncio.get_running_loop().time() + 0.05
    assert not await source.wait_for(lambda snapshot: False, deadline)


async def test_lost_database_connections_are_opened_again(database: Database, source: SnapshotSource) -> None:
    if database.is_sqlite:
        pytest.skip("SQLite has no connection to lose")

    def drop_connections() -> None:
        with database.read() as connection:
            connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            )

    await asyncio.to_thread(drop_connections)
    key = await asyncio.to_thread(fill, database)
    assert await seen(source, lambda snapshot: digest_of(key.encode()) in snapshot.keys)
