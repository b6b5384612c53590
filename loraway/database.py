"""The database: one engine, short transactions, migrations at start under a lock."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, Table, create_engine, event, select, text
from sqlalchemy.dialects import postgresql, sqlite

from loraway import schema

ROUTING = "routing"
_MIGRATION_LOCK = 0x10_4A_3A_11


class Database:
    """Opens transactions. Thread-safe; rows never leave the module that queries them.

    SQLite runs in WAL mode, fully synchronous: a commit that returned survives `kill -9` and power loss.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.is_sqlite = url.startswith("sqlite")
        if self.is_sqlite:
            Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        self.engine: Engine = create_engine(url, pool_pre_ping=not self.is_sqlite)
        if self.is_sqlite:
            event.listen(self.engine, "connect", _prepare_sqlite)
            event.listen(self.engine, "begin", _begin_sqlite)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only reads."""
        with (
            self.engine.connect().execution_options(loraway_read_only=True) as connection,
            connection.begin(),
        ):
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that commits on success and leaves nothing behind on an error."""
        with self.engine.begin() as connection:
            yield connection

    def migrate(self) -> None:
        """Bring the schema up to date; processes that start together wait for one another."""
        with self._migration_lock():
            config = Config()
            config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
            config.set_main_option("sqlalchemy.url", self.url.replace("%", "%%"))
            with self.engine.connect() as connection:
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
                connection.commit()

    def dispose(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()

    @contextmanager
    def _migration_lock(self) -> Iterator[None]:
        if self.is_sqlite:
            with open(self.url.removeprefix("sqlite:///") + ".migrate", "w") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                yield
            return
        with self.engine.connect() as connection:
            connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _MIGRATION_LOCK})
            try:
                yield
            finally:
                connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": _MIGRATION_LOCK})


def insert_once(connection: Connection, table: Table, **values: Any) -> bool:
    """Insert a row unless its key exists; True when it was inserted."""
    statement = _insert(connection, table).values(**values).on_conflict_do_nothing()
    # Without the option the number of rows of an INSERT is not kept: it reads -1.
    result = connection.execute(statement, execution_options={"preserve_rowcount": True})
    return result.rowcount == 1


def bump_revision(connection: Connection, name: str = ROUTING) -> None:
    """Tell the snapshots built on `name` to read again, once this transaction commits."""
    table = schema.revisions
    first = _insert(connection, table).values(name=name, value=1)
    connection.execute(
        first.on_conflict_do_update(index_elements=[table.c.name], set_={"value": table.c.value + 1})
    )
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_notify('loraway_revision', :name)"), {"name": name})


def read_revision(connection: Connection, name: str = ROUTING) -> int:
    """The present value of a revision; 0 before its first move."""
    table = schema.revisions
    value = connection.execute(select(table.c.value).where(table.c.name == name)).scalar()
    return int(value or 0)


def _insert(connection: Connection, table: Table) -> sqlite.Insert | postgresql.Insert:
    """An INSERT that can say what to do when the key exists: each dialect has its own class."""
    return sqlite.insert(table) if connection.dialect.name == "sqlite" else postgresql.insert(table)


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # we say BEGIN ourselves, below
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=15000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A writer takes the lock at once: two that read first and write later would deadlock.
    read_only = connection.get_execution_options().get("loraway_read_only", False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")
