"""What `loraway up` says when everything is ready."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from rich.console import Console

from loraway.cli.client import Connection
from loraway.settings import Settings


def print_banner(console: Console, settings: Settings, connection: Connection, seconds: float) -> None:
    """URL, key, and three commands to try next."""
    model = settings.engine.base_model
    engines = ", ".join(settings.engine.urls)
    program = _program()
    console.print(
        f"""
[bold green]loraway is ready[/bold green] after {seconds:.0f} s

  URL        [bold]{connection.url}/v1[/bold]
  API key    [bold]{connection.api_key}[/bold]
  model      {model}   [dim]({engines})[/dim]
  data, logs {settings.data_dir.resolve()}

Try next, in another terminal:

  {program} chat "What is the capital of France?"
  {program} traffic tail
  curl {connection.url}/v1/chat/completions -H "Authorization: Bearer {connection.api_key}" \\
    -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "Hi"}}]}}'

Ctrl-C stops everything.
""",
        highlight=False,
        soft_wrap=True,
    )


def _program() -> str:
    """How this user calls `loraway`: by name where the shell finds it, else by its path."""
    if shutil.which("loraway") is not None:
        return "loraway"
    path = Path(sys.prefix) / "bin" / "loraway"
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
