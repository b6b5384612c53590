"""One gateway process: its parts put together, started, and stopped in order."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any, Final, cast

import uvicorn
import uvloop
from uvicorn.config import Config
from uvicorn.server import ServerState

from adapters_store.blobs import LocalBlobStore
from adapters_store.registry import Registry
from engines.controller_client import ControllerClient
from finetune.files import FileStore
from finetune.jobs.store import JobStore
from gateway.app import create_app
from gateway.dataplane.cold import ColdVersions
from gateway.dataplane.plane import DataPlane
from gateway.dataplane.protocol import ClientConnection
from gateway.dataplane.sweep import Sweep
from gateway.dataplane.upstream import Upstreams
from gateway.metrics import Metrics
from gateway.parts import GatewayParts
from gateway.routing import POLICIES
from gateway.routing.source import SnapshotSource
from gateway.spans import Spans
from gateway.traffic import TrafficLog
from loraway.database import Database
from loraway.secrets import read_or_create_secret
from loraway.settings import Settings

_LOG = logging.getLogger(__name__)

#: How long answers under way may take to end after SIGTERM.
DRAIN_SECONDS: Final = 30
#: Allocations between two looks of the garbage collector at young objects; the hot path makes no cycles.
_GC_THRESHOLD: Final = 20_000


def run_worker(settings: Settings, listening: socket.socket, worker: int = 0) -> None:
    """Serve until SIGTERM or SIGINT; then finish what is under way and write the traffic log."""
    uvloop.run(_serve(settings, listening, worker))


async def _serve(settings: Settings, listening: socket.socket, worker: int) -> None:
    async with running_parts(settings, worker) as (parts, plane):
        sweep = Sweep(settings.gateway.timeouts)
        config = uvicorn.Config(
            create_app(parts),
            http=cast(Any, protocol_factory(plane, sweep)),
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            backlog=4096,
            timeout_graceful_shutdown=DRAIN_SECONDS,
        )
        sweep.start()
        gc.collect()
        gc.freeze()
        gc.set_threshold(_GC_THRESHOLD)
        _LOG.info("worker %d serves on %s:%d", worker, *listening.getsockname()[:2])
        try:
            await _Server(config).serve(sockets=[listening])
        finally:
            sweep.stop()


@asynccontextmanager
async def running_parts(settings: Settings, worker: int) -> AsyncIterator[tuple[GatewayParts, DataPlane]]:
    """The parts of one worker, started; on leaving they stop in the reverse order, so the log is written."""
    make_policy = POLICIES.get(settings.gateway.routing_policy)
    if make_policy is None:
        known = ", ".join(POLICIES)
        raise ValueError(f"gateway.routing_policy is {settings.gateway.routing_policy!r}; known: {known}")
    async with AsyncExitStack() as stack:
        database = Database(settings.database_url)
        stack.callback(database.dispose)
        snapshots = SnapshotSource(database, settings)
        await snapshots.start()
        stack.push_async_callback(snapshots.stop)
        controller = ControllerClient.from_settings(settings)
        stack.push_async_callback(controller.close)
        spans = Spans(settings.telemetry)
        spans.start()
        stack.push_async_callback(spans.stop)
        traffic = TrafficLog(database, settings.traffic)
        metrics = Metrics(worker, settings.data_dir / "run", traffic)
        await metrics.start()
        stack.push_async_callback(metrics.stop)
        traffic.start()
        stack.push_async_callback(traffic.stop)
        cold = ColdVersions(controller, snapshots, settings.gateway.timeouts.first_byte_seconds)
        stack.push_async_callback(cold.stop)
        explicit_key = settings.engine.api_key
        upstreams = Upstreams(
            read_or_create_secret(settings, "engine"),
            explicit_key.get_secret_value() if explicit_key is not None else None,
        )
        stack.callback(upstreams.close)
        parts = GatewayParts(
            settings=settings,
            database=database,
            registry=Registry(database, settings.blobs_dir / "adapters"),
            snapshots=snapshots,
            traffic=traffic,
            metrics=metrics,
            controller=controller,
            files=FileStore(database, LocalBlobStore(settings.blobs_dir), settings.gateway.max_upload_bytes),
            jobs=JobStore(database, settings.trainer.lease_seconds),
        )
        yield (
            parts,
            DataPlane(settings.gateway, snapshots, make_policy(), upstreams, cold, traffic, metrics, spans),
        )


def protocol_factory(plane: DataPlane, sweep: Sweep) -> Callable[..., asyncio.Protocol]:
    """What uvicorn's `http=` takes: makes the protocol of one client connection."""

    def make(
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> ClientConnection:
        return ClientConnection(plane, sweep.connections, config, server_state, app_state)

    return make


class _Server(uvicorn.Server):
    """uvicorn's server; unlike it this one returns after a signal, so that the parts can stop."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)
        _LOG.info("worker process %d has answered everything", os.getpid())
