"""The command line, put together."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from loraway.cli import adapters, jobs, keys, processes, traffic, up
from loraway.cli.chat import chat
from loraway.cli.settings_reference import settings_reference
from loraway.settings import load_settings

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Serve many LoRA adapters behind one OpenAI-compatible URL, and train them on your own traffic.",
)
app.command("up")(up.up)
app.command("gateway")(processes.gateway)
app.command("controller")(processes.controller)
app.command("trainer")(processes.trainer)
app.command("engine")(processes.engine)
app.command("chat")(chat)
app.add_typer(jobs.app, name="jobs")
app.add_typer(adapters.app, name="adapters")
app.add_typer(traffic.app, name="traffic")
app.add_typer(keys.app, name="keys")


@app.command()
def config(
    reference: Annotated[
        bool, typer.Option("--reference", help="Describe every setting, as Markdown.")
    ] = False,
) -> None:
    """Print the effective settings; secrets are hidden."""
    if reference:
        typer.echo(settings_reference(), nl=False)
        return
    Console().print_json(load_settings().model_dump_json())


if __name__ == "__main__":
    app()
