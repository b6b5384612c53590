"""How a worker learns that the routing revision has moved: cheap looks at SQLite, or PostgreSQL's NOTIFY.

Each watch is used by one thread only.
"""

from __future__ import annotations

import time
from typing import Any, Protocol

from loraway.database import Database, read_revision

#: PostgreSQL says when something moved; it is asked as well, in case a message was lost with a connection.
_ASK_SECONDS = 1.0


class RevisionWatch(Protocol):
    """Waits for a revision other than the last one seen."""

    def wait(self, known: int, timeout_seconds: float) -> int:
        """The present revision; returns early when it is not `known` any more."""
        ...

    def close(self) -> None:
        """Let go of the connection."""
        ...


def open_watch(database: Database, poll_seconds: float) -> RevisionWatch:
    """The watch for this database."""
    return SqliteWatch(database, poll_seconds) if database.is_sqlite else PostgresWatch(database)


class SqliteWatch:
    """`PRAGMA data_version` moves when another connection has committed: a few microseconds a look."""

    def __init__(self, database: Database, poll_seconds: float) -> None:
        self._connection = database.engine.raw_connection()
        self._poll_seconds = poll_seconds
        self._version = -1

    def wait(self, known: int, timeout_seconds: float) -> int:
        deadline = time.monotonic() + timeout_seconds
        while True:
            cursor = self._connection.cursor()
            (version,) = cursor.execute("PRAGMA data_version").fetchone()
            if version != self._version:
                self._version = version
                row = cursor.execute("SELECT value FROM revisions WHERE name = 'routing'").fetchone()
                revision = int(row[0]) if row else 0
                if revision != known:
                    return revision
            if time.monotonic() >= deadline:
                return known
            time.sleep(self._poll_seconds)

    def close(self) -> None:
        self._connection.close()


class PostgresWatch:
    """Listens on a connection of its own."""

    def __init__(self, database: Database) -> None:
        self._database = database
        pooled = database.engine.raw_connection()
        connection: Any = pooled.driver_connection
        pooled.detach()  # it stays in autocommit, so it must not go back to the pool
        self._connection = connection
        self._connection.autocommit = True
        self._connection.execute("LISTEN loraway_revision")

    def wait(self, known: int, timeout_seconds: float) -> int:
        deadline = time.monotonic() + timeout_seconds
        while True:
            with self._database.read() as connection:
                revision = read_revision(connection)
            left = deadline - time.monotonic()
            if revision != known or left <= 0:
                return revision
            for _ in self._connection.notifies(timeout=min(left, _ASK_SECONDS), stop_after=1):
                break

    def close(self) -> None:
        self._connection.close()
