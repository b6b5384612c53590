"""Databases for the integration tests: SQLite, and a real PostgreSQL where its server is installed.

`postgres_url` and `sqlite_url` are fresh, migrated databases; `database_url` and `database` run a test
on both.
PostgreSQL is started once a run from Debian's binaries, in a temporary folder, on a free loopback port.
"""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from loraway.database import Database

_START_SECONDS = 60.0
_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """`host:port` of a PostgreSQL with a migrated database named `template_loraway`."""
    binaries = _find_binaries()
    if binaries is None:
        pytest.skip("PostgreSQL's server is not installed (/usr/lib/postgresql/*/bin)")
    with _running_postgres(binaries) as address:
        _admin(address, "CREATE DATABASE template_loraway")
        template = Database(_postgres_url(address, "template_loraway"))
        template.migrate()
        template.dispose()
        yield address


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """A fresh, migrated PostgreSQL database of this test's own."""
    name = f"test_{next(_numbers)}"
    _admin(postgres_server, f"CREATE DATABASE {name} TEMPLATE template_loraway")
    yield _postgres_url(postgres_server, name)
    _admin(postgres_server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def _sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sqlite-template") / "loraway.db"
    template = Database(f"sqlite:///{path}")
    template.migrate()
    template.dispose()
    return path


@pytest.fixture
def sqlite_url(_sqlite_template: Path, tmp_path: Path) -> str:
    """A fresh, migrated SQLite database of this test's own."""
    path = tmp_path / "loraway.db"
    shutil.copyfile(_sqlite_template, path)
    return f"sqlite:///{path}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """The test runs once on each kind of database."""
    name = "sqlite_url" if request.param == "sqlite" else "postgres_url"
    return str(request.getfixturevalue(name))


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A migrated database, of each kind in turn."""
    database = Database(database_url)
    yield database
    database.dispose()


def _postgres_url(address: str, name: str) -> str:
    return f"postgresql+psycopg://loraway@{address}/{name}"


def _admin(address: str, statement: str) -> None:
    with psycopg.connect(f"postgresql://loraway@{address}/postgres", autocommit=True) as connection:
        connection.execute(statement.encode())


def _find_binaries() -> Path | None:
    """The newest installed server's folder of binaries."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    return max(found, key=lambda path: int(path.parent.name), default=None)


@contextmanager
def _running_postgres(binaries: Path) -> Iterator[str]:
    """A server for as long as the block runs; yields `host:port`. Everything of it is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="loraway-postgres-"))
    as_owner = _become_postgres(folder)
    port = _free_port()
    try:
        subprocess.run(
            [
                *as_owner,
                binaries / "initdb",
                "-D",
                folder / "db",
                "-U",
                "loraway",
                "-A",
                "trust",
                "-E",
                "UTF8",
            ],
            check=True,
            capture_output=True,
            cwd=folder,
        )
        options = ["-D", folder / "db", "-h", "127.0.0.1", "-p", str(port), "-k", folder, "-F"]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(
                [*as_owner, binaries / "postgres", *options, "-c", "max_connections=200"],
                stdout=log,
                stderr=log,
                cwd=folder,
            )
        try:
            _wait_until_ready(port, server, folder / "log")
            yield f"127.0.0.1:{port}"
        finally:
            server.send_signal(signal.SIGINT)  # SIGTERM would wait for clients that are still connected
            server.wait(30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _become_postgres(folder: Path) -> list[str]:
    """The words before a command that run it as a user PostgreSQL accepts: it refuses root."""
    if os.getuid() != 0:
        return []
    owner = pwd.getpwnam("postgres")
    os.chown(folder, owner.pw_uid, owner.pw_gid)
    return ["setpriv", f"--reuid={owner.pw_uid}", f"--regid={owner.pw_gid}", "--clear-groups", "--"]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            break
        try:
            psycopg.connect(f"host=127.0.0.1 port={port} user=loraway dbname=postgres").close()
            return
        except psycopg.OperationalError:
            time.sleep(0.05)
    raise RuntimeError(f"PostgreSQL did not start:\n{log.read_text(errors='replace')[-2000:]}")
