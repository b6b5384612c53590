"""The processes that `loraway up` supervises, each to be run alone on a machine of its own."""

from __future__ import annotations

import asyncio
import importlib
import signal
from typing import Annotated

import typer

from engines import controller as controller_process
from engines.launch.catalogue import choose_port, spec_for
from engines.launch.process import EngineProcess
from gateway import server
from loraway.cli.client import fail
from loraway.cli.first_start import prepare_model
from loraway.database import Database
from loraway.secrets import read_or_create_secret
from loraway.settings import EngineKind, Settings, changed, load_settings
from loraway.telemetry import configure_logging


def gateway(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that share the port.")] = None,
) -> None:
    """Run the gateway."""
    settings = changed(load_settings(), "gateway", host=host, port=port, workers=workers)
    _prepare(settings, "gateway")
    server.serve(settings)


def controller() -> None:
    """Run the controller: replicas, residency, rollouts."""
    settings = load_settings()
    _prepare(settings, "controller")
    controller_process.run(settings)


def trainer() -> None:
    """Run the trainer: fine-tuning jobs."""
    settings = load_settings()
    _prepare(settings, "trainer")
    # Named, not imported: a gateway must start on a machine that has no training libraries.
    importlib.import_module("finetune.trainer").run(settings)


def engine(
    kind: Annotated[EngineKind, typer.Argument(help="vllm or sglang.")] = "vllm",
    port: Annotated[int, typer.Option(help="Port to listen on; 0: any that is free.")] = 0,
) -> None:
    """Run one local engine until Ctrl-C, or until it ends."""
    if kind == "openai":
        fail("An 'openai' engine is somebody else's server; there is nothing to start.")
    settings = load_settings()
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    prepare_model(settings)
    key = read_or_create_secret(settings, "engine")
    process = EngineProcess(spec_for(kind, settings, port=port or choose_port(), api_key=key))
    raise typer.Exit(asyncio.run(_run_engine(process, settings.engine.ready_seconds)))


async def _run_engine(process: EngineProcess, ready_seconds: float) -> int:
    """Start it, say where it is, stop it on a signal; its exit status, or 0 when stopped."""
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    await process.start()
    ended = asyncio.create_task(process.wait())
    ended.add_done_callback(lambda _: stopping.set())
    ready = asyncio.create_task(_say_when_ready(process, ready_seconds))
    try:
        await stopping.wait()
        return ended.result() if ended.done() else 0
    finally:
        ready.cancel()
        await process.stop()
        await asyncio.gather(ready, ended, return_exceptions=True)


async def _say_when_ready(process: EngineProcess, ready_seconds: float) -> None:
    await process.wait_ready(ready_seconds)
    typer.echo(process.url)


def _prepare(settings: Settings, name: str) -> None:
    configure_logging(name)
    database = Database(settings.database_url)
    database.migrate()
    database.dispose()
