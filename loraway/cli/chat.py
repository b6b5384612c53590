"""`loraway chat`: ask a model through the gateway, streamed."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from loraway.cli.client import GatewayClient
from loraway.settings import load_settings


def chat(
    question: Annotated[str | None, typer.Argument(help="What to ask; without it, a conversation.")] = None,
    model: Annotated[
        str, typer.Option("--model", "-m", help="Base model, alias or version.")
    ] = "smollm2-135m",
    max_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    store: Annotated[bool, typer.Option(help="Store the completion.")] = True,
) -> None:
    """Ask one question, or talk until an empty line."""
    client = GatewayClient(load_settings())
    messages: list[dict[str, str]] = []
    options = {
        "model": model,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "store": store,
        "stream_options": {"include_usage": True},
    }
    if question is not None:
        _answer(client, [{"role": "user", "content": question}], options)
        return
    while line := typer.prompt(model, prompt_suffix="> ", default="", show_default=False):
        messages.append({"role": "user", "content": line})
        messages.append({"role": "assistant", "content": _answer(client, messages, options)})


def _answer(client: GatewayClient, messages: list[dict[str, str]], options: dict[str, Any]) -> str:
    text = ""
    for event in client.stream("/v1/chat/completions", {"messages": messages, "stream": True, **options}):
        if "error" in event:
            typer.secho(f"\n{event['error']['message']}", fg="red", err=True)
            raise typer.Exit(1)
        for choice in event.get("choices", []):
            piece = choice["delta"].get("content") or ""
            text += piece
            typer.echo(piece, nl=False)
    typer.echo()
    return text
