"""`loraway keys`: API keys; straight in the database, for the operator of this machine."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from gateway.keys import KeyStore, ensure_project
from loraway.database import Database
from loraway.settings import load_settings

app = typer.Typer(no_args_is_help=True, help="API keys.")
console = Console()


@app.command()
def create(
    name: Annotated[str, typer.Option(help="What the key is for.")] = "key",
    project: Annotated[str, typer.Option(help="Project that owns it; made if new.")] = "default",
) -> None:
    """Make a key and print it, this once: only its digest is kept."""
    database = _database()
    secret, key = KeyStore(database).create(ensure_project(database, project), name)
    console.print(f"{key.key_id}  {key.name}", highlight=False)
    typer.echo(secret)


@app.command("list")
def list_keys(project: Annotated[str, typer.Option(help="Project.")] = "default") -> None:
    """The project's keys, by their last characters."""
    database = _database()
    table = Table(Column("id", no_wrap=True, min_width=32), "name", "ends in", "created", "revoked")
    for key in KeyStore(database).list(ensure_project(database, project)):
        table.add_row(key.key_id, key.name, key.hint, _clock(key.created_at), _clock(key.revoked_at))
    console.print(table)


@app.command()
def revoke(key_id: str, project: Annotated[str, typer.Option(help="Project.")] = "default") -> None:
    """Make a key useless, at once in every gateway."""
    database = _database()
    KeyStore(database).revoke(ensure_project(database, project), key_id)
    console.print(f"{key_id} is revoked.", highlight=False)


def _database() -> Database:
    database = Database(load_settings().database_url)
    database.migrate()
    return database


def _clock(seconds: float | None) -> str:
    return "" if seconds is None else datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")
