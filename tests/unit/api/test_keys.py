"""API keys: a secret once, a digest for ever."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from gateway.keys import KeyStore, digest_of, ensure_default_project, ensure_project
from loraway.database import Database, read_revision
from loraway.errors import InvalidRequest, NotFound
from loraway.ids import ProjectId
from loraway.schema import api_keys, projects


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'loraway.db'}")
    database.migrate()
    yield database
    database.dispose()


def revision(database: Database) -> int:
    with database.read() as connection:
        return read_revision(connection)


def test_a_secret_is_shown_once_and_only_its_digest_is_kept(database: Database) -> None:
    secret, key = KeyStore(database).create(ensure_default_project(database), "mine")

    assert secret.startswith("sk-loraway-") and len(secret) >= 40
    assert key.hint == secret[-4:]
    with database.read() as connection:
        (row,) = connection.execute(select(api_keys)).all()
    assert row.digest == digest_of(secret.encode()) and len(row.digest) == 16
    assert not any(isinstance(value, str) and secret in value for value in row)


def test_keys_differ_and_are_listed_in_the_order_they_were_made(database: Database) -> None:
    keys, project_id = KeyStore(database), ensure_default_project(database)
    made = [keys.create(project_id, name) for name in ("one", "two")]
    assert made[0][0] != made[1][0]
    assert keys.list(project_id) == [key for _, key in made]
    assert keys.list(ProjectId("proj_none")) == []


def test_making_and_revoking_a_key_is_seen_by_the_workers(database: Database) -> None:
    keys, project_id = KeyStore(database), ensure_default_project(database)
    before = revision(database)
    secret, key = keys.create(project_id, "mine")
    assert keys.is_valid(secret) and revision(database) == before + 1
    revoked = keys.revoke(project_id, key.key_id)
    assert revoked.is_revoked and not keys.is_valid(secret) and revision(database) == before + 2
    assert keys.revoke(project_id, key.key_id).revoked_at == revoked.revoked_at


def test_another_projects_key_cannot_be_revoked(database: Database) -> None:
    keys = KeyStore(database)
    secret, key = keys.create(ensure_project(database, "mine"), "mine")
    with pytest.raises(NotFound):
        keys.revoke(ensure_project(database, "other"), key.key_id)
    assert keys.is_valid(secret)


@pytest.mark.parametrize("secret", ["", "sk-loraway-", "é"])
def test_what_is_no_key_is_not_valid(database: Database, secret: str) -> None:
    assert not KeyStore(database).is_valid(secret)


def test_a_project_is_made_once(database: Database) -> None:
    first = ensure_project(database, "mine", stores_by_default=True)
    assert ensure_project(database, " mine ", stores_by_default=False) == first
    assert ensure_default_project(database) != first
    with database.read() as connection:
        mine = select(projects.c.store_by_default).where(projects.c.id == first)
        assert connection.execute(mine).scalar() is True


@pytest.mark.parametrize("name", ["", "  ", "x" * 129, "a\nb", "a\0b"])
def test_names_that_cannot_be_shown_are_refused(database: Database, name: str) -> None:
    with pytest.raises(InvalidRequest):
        ensure_project(database, name)
    with pytest.raises(InvalidRequest):
        KeyStore(database).create(ensure_default_project(database), name)
