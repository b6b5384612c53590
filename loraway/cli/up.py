"""`loraway up`: everything on this machine, with one command.

Engines, controller, trainer and gateway: started together, watched, started again when they end, and stopped
together. Other processes find one another through the environment that `up` gives them.
"""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path
from typing import Annotated

import httpx
import typer
from rich.console import Console

from engines.launch.catalogue import choose_port
from loraway.cli.banner import print_banner
from loraway.cli.children import EngineChild, services
from loraway.cli.client import Connection
from loraway.cli.first_start import first_key, only_one, prepare_model
from loraway.cli.supervision import Child, Supervised
from loraway.secrets import read_or_create_secret
from loraway.settings import Settings, changed, load_settings

console = Console()


def up(
    engine: Annotated[
        str | None, typer.Option(help="vllm, sglang or vllm,sglang: one local engine each.")
    ] = None,
    engine_url: Annotated[
        list[str] | None, typer.Option(help="Use an engine that runs already: URL (vllm) or kind=URL.")
    ] = None,
    model: Annotated[Path | None, typer.Option(help="Folder of the base model.", exists=True)] = None,
    model_name: Annotated[str | None, typer.Option(help="Name clients ask for the base model by.")] = None,
    host: Annotated[str | None, typer.Option(help="Address the gateway listens on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port of the gateway; 0: any that is free.")] = None,
    workers: Annotated[int | None, typer.Option(help="Gateway processes.")] = None,
    store: Annotated[bool, typer.Option(help="The first project stores completions by default.")] = True,
) -> None:
    """Start everything and keep it running until Ctrl-C."""
    name = model_name or (model.resolve().name.lower() if model else None)
    kinds = engine.split(",") if engine else None
    settings = changed(load_settings(), "engine", kinds=kinds, model_path=model, base_model=name)
    settings = changed(settings, "engine", urls=engine_url or None)
    settings = changed(
        settings, "gateway", host=host, workers=workers, port=choose_port() if port == 0 else port
    )
    if settings.controller.port == 0:
        settings = changed(settings, "controller", port=choose_port())
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    with only_one(settings):
        prepare_model(settings)
        connection = first_key(settings, store)
        raise typer.Exit(asyncio.run(Up(settings, connection).run()))


class Up:
    """One run of everything; owns the children."""

    def __init__(self, settings: Settings, connection: Connection) -> None:
        self._started = time.monotonic()
        self._connection = connection
        urls = list(settings.engine.urls)
        self._engines: list[EngineChild] = []
        if not urls:
            key = read_or_create_secret(settings, "engine")
            self._engines = [
                EngineChild(kind, settings, choose_port(), key) for kind in settings.engine.kinds
            ]
            urls = [f"{engine.name}={engine.url}" for engine in self._engines]
        self._settings = changed(settings, "engine", urls=urls)
        children: list[Child] = [*self._engines, *services(self._settings)]
        self._children = [Supervised(child, self._report) for child in children]

    async def run(self) -> int:
        """Start, wait until ready, say so, go on until a signal; the exit status."""
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stopping.set)
        running = [asyncio.create_task(child.run()) for child in self._children]
        for task in running:  # a child that cannot even be started ends everything
            task.add_done_callback(lambda _: stopping.set())
        is_ready = False
        try:
            is_ready = await self._wait_ready(stopping)
            if is_ready:
                self._connection.save(self._settings)
                print_banner(console, self._settings, self._connection, time.monotonic() - self._started)
                await stopping.wait()
        finally:
            console.print("Stopping ...")
            failures = await self._stop(running)
        for failure in failures:
            self._report(str(failure))
        return 0 if is_ready and not failures else 1

    async def _wait_ready(self, stopping: asyncio.Event) -> bool:
        """Until engines, gateway and trainer are ready; False when stopped before, or late."""
        deadline = self._started + self._settings.engine.ready_seconds
        with console.status("Starting ...") as status:
            async with httpx.AsyncClient(base_url=self._connection.url, timeout=5) as http:
                while not stopping.is_set() and time.monotonic() < deadline:
                    missing = await self._not_ready(http)
                    if not missing:
                        return True
                    seconds = time.monotonic() - self._started
                    status.update(f"Waiting for {', '.join(missing)} ({seconds:.0f} s)")
                    await asyncio.sleep(0.1)
        if not stopping.is_set():
            self._report(
                f"Not ready in time: {', '.join(missing)}. The logs are in {self._settings.logs_dir}."
            )
        return False

    async def _not_ready(self, http: httpx.AsyncClient) -> list[str]:
        """What is not ready yet, by name."""
        missing = [engine.name for engine in self._engines if not engine.is_ready]
        if not (self._settings.data_dir / "run" / "trainer.ready").exists():
            missing.append("trainer")
        try:
            response = await http.get("/readyz")
        except httpx.TransportError:
            return [*missing, "gateway"]
        return missing if response.status_code == 200 else [*missing, "a replica"]

    async def _stop(self, running: list[asyncio.Task[None]]) -> list[BaseException]:
        """The gateway first, so that no request is cut, the engines last; what went wrong."""
        for child in reversed(self._children):
            await child.stop()
        ended = await asyncio.gather(*running, return_exceptions=True)
        return [result for result in ended if isinstance(result, BaseException)]

    def _report(self, line: str) -> None:
        console.print(f"[yellow]{line}[/yellow]", highlight=False)
