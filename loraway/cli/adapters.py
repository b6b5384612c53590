"""`loraway adapters`: what was trained, what serves, and the way back."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from loraway.cli.client import GatewayClient
from loraway.settings import load_settings

app = typer.Typer(no_args_is_help=True, help="Adapters and their versions.")
console = Console()


@app.command("list")
def list_adapters() -> None:
    """Every adapter of the project and the version its alias points at."""
    table = Table("adapter", "serves", "before", "base model")
    for adapter in GatewayClient(load_settings()).get("/v1/adapters")["data"]:
        table.add_row(
            adapter["name"],
            adapter.get("version") or "",
            adapter.get("previous_version") or "",
            adapter["base_model"],
        )
    console.print(table)


@app.command()
def show(name: str) -> None:
    """An adapter and its versions."""
    client = GatewayClient(load_settings())
    console.print_json(json.dumps(client.get(f"/v1/adapters/{name}")))
    console.print_json(json.dumps(client.get(f"/v1/adapters/{name}/versions")))


@app.command()
def rollback(
    name: str,
    to: Annotated[str | None, typer.Option(help="NAME@NUMBER; the version before if left out.")] = None,
) -> None:
    """Move the alias back to the version it pointed at before, or to the one named."""
    body = {"version": to} if to is not None else None
    adapter = GatewayClient(load_settings()).post(f"/v1/adapters/{name}/rollback", body)
    console.print(f"{name} was {adapter['before']}, is {adapter['after']}.", highlight=False)
