"""Projects and their API keys. A key's secret is shown once; the database holds its digest only."""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Row, insert, select, update

from loraway.database import Database, bump_revision, insert_once
from loraway.errors import InvalidRequest, NotFound
from loraway.ids import KEY, PROJECT, KeyId, ProjectId, new_id
from loraway.schema import api_keys, projects

DEFAULT_PROJECT: Final = "default"
SECRET_PREFIX: Final = "sk-loraway-"
DIGEST_BYTES: Final = 16
MAX_NAME: Final = 128
_SECRET_BYTES: Final = 24
_HINT_CHARACTERS: Final = 4


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key without its secret."""

    key_id: KeyId
    project_id: ProjectId
    name: str
    #: The last characters of the secret, to recognise it by.
    hint: str
    created_at: float
    revoked_at: float | None

    @property
    def is_revoked(self) -> bool:
        return self.revoked_at is not None


def digest_of(secret: bytes) -> bytes:
    """What the database and the routing snapshot know a key by: BLAKE2b, 16 bytes."""
    return hashlib.blake2b(secret, digest_size=DIGEST_BYTES).digest()


class KeyStore:
    """Makes, lists and revokes keys; the only writer of `api_keys`. Gateway workers see it at once."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, project_id: ProjectId, name: str) -> tuple[str, ApiKey]:
        """A new key: its secret, which nobody can read again, and what is kept of it."""
        name = _checked_name(name, "key")
        secret = SECRET_PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
        key = ApiKey(
            KeyId(new_id(KEY)), project_id, name, secret[-_HINT_CHARACTERS:], time.time(), revoked_at=None
        )
        with self._database.write() as connection:
            connection.execute(
                insert(api_keys).values(
                    id=key.key_id,
                    project_id=project_id,
                    name=name,
                    digest=digest_of(secret.encode()),
                    hint=key.hint,
                    created_at=key.created_at,
                )
            )
            bump_revision(connection)
        return secret, key

    def list(self, project_id: ProjectId) -> list[ApiKey]:
        """The project's keys, oldest first, revoked ones too."""
        query = select(api_keys).where(api_keys.c.project_id == project_id).order_by(api_keys.c.id)
        with self._database.read() as connection:
            return [_key(row) for row in connection.execute(query)]

    def revoke(self, project_id: ProjectId, key_id: str) -> ApiKey:
        """Make a key useless; one that is revoked already stays as it is. Raises NotFound."""
        mine = (api_keys.c.id == key_id) & (api_keys.c.project_id == project_id)
        with self._database.write() as connection:
            still_valid = mine & api_keys.c.revoked_at.is_(None)
            connection.execute(update(api_keys).where(still_valid).values(revoked_at=time.time()))
            row = connection.execute(select(api_keys).where(mine)).first()
            if row is None:
                raise NotFound(f"There is no key {key_id[:80]!r} in this project.")
            bump_revision(connection)
        return _key(row)

    def is_valid(self, secret: str) -> bool:
        """Whether requests with this secret are let in."""
        query = select(api_keys.c.id).where(
            api_keys.c.digest == digest_of(secret.encode()), api_keys.c.revoked_at.is_(None)
        )
        with self._database.read() as connection:
            return connection.execute(query).first() is not None


def ensure_project(database: Database, name: str, *, stores_by_default: bool | None = None) -> ProjectId:
    """The project of this name, made when there is none.

    `stores_by_default` is for a new project: whether requests that do not say `store` are stored; None
    leaves that to the setting `traffic.store_by_default`.
    """
    name = _checked_name(name, "project")
    with database.write() as connection:
        is_new = insert_once(
            connection,
            projects,
            id=new_id(PROJECT),
            name=name,
            store_by_default=stores_by_default,
            created_at=time.time(),
        )
        if is_new:
            bump_revision(connection)
        return ProjectId(
            connection.execute(select(projects.c.id).where(projects.c.name == name)).scalar_one()
        )


def ensure_default_project(database: Database) -> ProjectId:
    """The project that owns what is made without saying whose it is."""
    return ensure_project(database, DEFAULT_PROJECT)


def _checked_name(name: str, kind: str) -> str:
    stripped = name.strip()
    if not 0 < len(stripped) <= MAX_NAME or not stripped.isprintable():
        raise InvalidRequest(
            f"The {kind}'s name must have 1 to {MAX_NAME} printable characters.", param="name"
        )
    return stripped


def _key(row: Row[Any]) -> ApiKey:
    return ApiKey(
        key_id=KeyId(row.id),
        project_id=ProjectId(row.project_id),
        name=row.name,
        hint=row.hint,
        created_at=row.created_at,
        revoked_at=row.revoked_at,
    )
