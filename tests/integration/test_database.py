"""The database's own promises, on SQLite and PostgreSQL."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import insert, select

from loraway.database import Database, bump_revision, insert_once, read_revision
from loraway.schema import metadata, projects


def test_the_migrations_make_exactly_the_tables_that_the_schema_declares(database: Database) -> None:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_processes_that_migrate_together_wait_for_one_another(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/fresh.db"
    failures: list[BaseException] = []

    def migrate() -> None:
        try:
            Database(url).migrate()
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=migrate) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_transaction_that_fails_leaves_nothing_behind(database: Database) -> None:
    class Stop(Exception):
        pass

    with pytest.raises(Stop), database.write() as connection:
        connection.execute(insert(projects).values(id="p", name="p", created_at=0.0))
        bump_revision(connection)
        raise Stop
    with database.read() as connection:
        assert connection.execute(select(projects)).all() == []
        assert read_revision(connection) == 0


def test_an_insert_of_the_same_key_happens_once(database: Database) -> None:
    made = []
    for _ in range(2):
        with database.write() as connection:
            made.append(insert_once(connection, projects, id="p", name="p", created_at=0.0))
    assert made == [True, False]


def test_no_revision_is_lost_when_many_writers_move_it(database: Database) -> None:
    def bump() -> None:
        for _ in range(10):
            with database.write() as connection:
                bump_revision(connection)

    threads = [threading.Thread(target=bump) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as connection:
        assert read_revision(connection) == 60
