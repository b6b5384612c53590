"""The command line, put together."""

from __future__ import annotations

import typer
from rich.console import Console

from loraway.cli import adapters, jobs, keys, processes, traffic, up
from loraway.cli.chat import chat
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
def config() -> None:
    """Print the effective settings; secrets are hidden."""
    Console().print_json(load_settings().model_dump_json())


if __name__ == "__main__":
    app()
