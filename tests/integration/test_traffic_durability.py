"""A completion whose last byte was sent is in the database, whatever happens to the process after it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from sqlalchemy import insert, select

from loraway import schema
from loraway.database import Database

KILLS = 6
PROGRAM = Path(__file__).with_name("storing_process.py")
ROOT = Path(__file__).parents[2]


def ids_until_killed(url: str, after: int) -> set[str]:
    """Start a storing process, kill it once it has printed `after` ids; every id it printed."""
    command = [sys.executable, str(PROGRAM), url, "proj_1"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}
    ) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(after)]
        process.kill()
        lines += process.stdout.readlines()
    return {line.decode().strip() for line in lines if line.endswith(b"\n")}


def test_every_answered_completion_survives_sigkill(database: Database, database_url: str) -> None:
    with database.write() as connection:
        connection.execute(insert(schema.projects).values(id="proj_1", name="one", created_at=1.0))

    answered: set[str] = set()
    for number in range(KILLS):
        answered |= ids_until_killed(database_url, after=100 + 37 * number)

    with database.read() as connection:
        stored = set(connection.execute(select(schema.completions.c.id)).scalars())
    assert len(answered) >= KILLS * 100
    assert answered <= stored
