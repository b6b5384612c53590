"""`loraway traffic tail`: the stored completions, as they come in."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.console import Console

from loraway.cli.client import GatewayClient
from loraway.settings import load_settings

app = typer.Typer(no_args_is_help=True, help="Logged traffic.")
console = Console()


@app.command()
def tail(
    lines: Annotated[int, typer.Option("--lines", "-n", help="How many to begin with.")] = 10,
    follow: Annotated[
        bool, typer.Option("--follow/--no-follow", "-f", help="Go on as new ones come.")
    ] = True,
) -> None:
    """The newest stored completions: time, model, tokens, question and answer."""
    client = GatewayClient(load_settings())
    newest = client.get("/v1/chat/completions", limit=min(max(lines, 1), 100), order="desc")["data"]
    last = None
    for completion in reversed(newest):
        _print(client, completion)
        last = completion["id"]
    while follow:
        time.sleep(0.5)
        for completion in client.get("/v1/chat/completions", limit=100, order="asc", after=last)["data"]:
            _print(client, completion)
            last = completion["id"]


def _print(client: GatewayClient, completion: dict[str, Any]) -> None:
    clock = datetime.fromtimestamp(completion["created"]).strftime("%H:%M:%S")
    messages = client.get(f"/v1/chat/completions/{completion['id']}/messages", limit=100)["data"]
    question = messages[-1]["content"] if messages else ""
    answer = completion["choices"][0]["message"]["content"] if completion["choices"] else ""
    usage = completion.get("usage") or {}
    tokens = f"{usage.get('prompt_tokens', '?')}+{usage.get('completion_tokens', '?')}"
    console.print(
        f"[dim]{clock}[/dim] [cyan]{completion['model']}[/cyan] "
        f"[dim]{tokens} tokens  {completion['id']}[/dim]\n"
        f"  > {_short(question)}\n  < {_short(answer)}",
        highlight=False,
    )


def _short(content: Any, limit: int = 200) -> str:
    text = content if isinstance(content, str) else str(content or "")
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
