"""One controller at a time for one database; a second waits until the first has gone.

SQLite: a lock on a file beside the database. PostgreSQL: a session's advisory lock, which ends with the
connection, so its holder looks now and then whether it still has it.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from sqlalchemy import Connection, text

from loraway.database import Database

_log = logging.getLogger(__name__)

_ADVISORY_KEY = 0x10_4A_C0_17
_WAIT_SECONDS = 0.2
_CHECK_SECONDS = 5.0


@asynccontextmanager
async def controller_lock(database: Database) -> AsyncIterator[None]:
    """Held by the one controller. Ends the block with the database's error when the lock is lost."""
    if database.is_sqlite:
        async with _file_lock(Path(database.url.removeprefix("sqlite:///") + ".controller")):
            yield
    else:
        async with _advisory_lock(database):
            yield


@asynccontextmanager
async def _file_lock(path: Path) -> AsyncIterator[None]:
    with path.open("w") as file:
        is_told = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                is_told = _tell_once(is_told)
                await asyncio.sleep(_WAIT_SECONDS)
        yield


@asynccontextmanager
async def _advisory_lock(database: Database) -> AsyncIterator[None]:
    connection = await asyncio.to_thread(_connect, database)
    try:
        is_told = False
        while not await asyncio.to_thread(_try_lock, connection):
            is_told = _tell_once(is_told)
            await asyncio.sleep(_WAIT_SECONDS)
        async with asyncio.TaskGroup() as tasks:
            check = tasks.create_task(_check(connection))
            try:
                yield
            finally:
                check.cancel()
    finally:
        # Back in the pool the session, and so the lock, would live on.
        await asyncio.to_thread(connection.invalidate)
        connection.close()


def _connect(database: Database) -> Connection:
    return database.engine.connect().execution_options(isolation_level="AUTOCOMMIT")


def _try_lock(connection: Connection) -> bool:
    return bool(
        connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": _ADVISORY_KEY}).scalar()
    )


async def _check(connection: Connection) -> None:
    while True:
        await asyncio.sleep(_CHECK_SECONDS)
        await asyncio.to_thread(connection.execute, text("SELECT 1"))


def _tell_once(is_told: bool) -> bool:
    if not is_told:
        _log.info("another controller is running; waiting until it has gone")
    return True
