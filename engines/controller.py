"""The controller: the one process that owns replicas, what is loaded on them, and rollouts.

`python -m engines.controller` runs it. It registers the engines named in the settings, then watches each,
converges each, runs rollouts, and answers its internal HTTP interface, until SIGTERM or SIGINT.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import uvicorn

from adapters_store.registry import Registry
from engines.cold import ColdLoads
from engines.controller_api import create_controller_api
from engines.controller_lock import controller_lock
from engines.drivers import driver_for, parse_engine_url
from engines.fleet import Fleet, Replica
from engines.fleet_rows import BaseModel, FleetRows
from engines.loader import Loader
from engines.reconciler import Reconciler
from engines.rollout import Rollouts
from loraway import models
from loraway.database import Database
from loraway.errors import NotFound
from loraway.secrets import read_or_create_secret
from loraway.settings import Settings, load_settings

_log = logging.getLogger(__name__)

#: Readings of the snapshot after which every gateway worker knows that a version is to be unloaded.
_SNAPSHOT_READINGS = 4
_FAULT_PAUSE_SECONDS = 1.0


class Controller:
    """Puts the parts together and runs their loops; one object per process."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings
        self._database = database
        self._registry = Registry(database, settings.blobs_dir / "adapters")
        self._work = asyncio.Event()
        self.fleet = Fleet(FleetRows(database))
        #: Where its HTTP interface listens; known once `is_serving` is set.
        self.port = settings.controller.port
        self.is_serving = asyncio.Event()

    def wake(self) -> None:
        """Have every loop look for work now."""
        self._work.set()
        for replica in self.fleet.replicas.values():
            replica.has_news.set()

    async def run(self) -> None:
        """Until it is cancelled. Raises when the controller's lock is lost."""
        async with controller_lock(self._database):
            try:
                await self._enrol()
                await self._run_loops()
            finally:
                for replica in self.fleet.replicas.values():
                    await replica.engine.close()

    async def _enrol(self) -> None:
        engine_settings, base_model = self._settings.engine, self._settings.engine.base_model
        folder = self._settings.model_path
        if not (folder / "config.json").is_file():
            raise NotFound(f"The base model {base_model} has no folder here; set engine.model_path to it.")
        await asyncio.to_thread(
            self.fleet.rows.write_base_model,
            BaseModel(base_model, str(folder), models.base_revision(folder), models.template_sha256(folder)),
        )
        api_key = read_or_create_secret(self._settings, "engine")
        for text in engine_settings.urls:
            kind, url = parse_engine_url(text)
            slots = 0 if kind == "openai" else engine_settings.max_cpu_loras
            await self.fleet.enrol(driver_for(kind, url, api_key, base_model), base_model, slots)
        await self.fleet.retire_others()

    async def _run_loops(self) -> None:
        controller, gateway = self._settings.controller, self._settings.gateway
        async with asyncio.TaskGroup() as tasks:
            loader = Loader(
                self.fleet,
                tasks,
                controller.logprob_tolerance,
                grace_seconds=gateway.snapshot_poll_seconds * _SNAPSHOT_READINGS,
            )
            reconciler = Reconciler(self.fleet, loader, self._registry)
            cold = ColdLoads(self.fleet, loader, self._registry, tasks)
            rollouts = Rollouts(
                self.fleet,
                loader,
                self._registry,
                tasks,
                self._settings.engine.ready_seconds,
                on_end=self._work.set,
            )
            for replica in self.fleet.replicas.values():
                tasks.create_task(self._watch(replica))
                tasks.create_task(self._converge(replica, reconciler))
            tasks.create_task(_forever(rollouts.start_open, self._wait_for_work))
            tasks.create_task(self._serve(cold))

    async def _watch(self, replica: Replica) -> None:
        async def pause() -> None:
            settings = self._settings.controller
            await asyncio.sleep(settings.health_seconds if replica.is_ready else settings.poll_seconds)

        await _forever(lambda: self.fleet.observe(replica), pause)

    async def _converge(self, replica: Replica, reconciler: Reconciler) -> None:
        async def pause() -> None:
            await _wait(replica.has_news, self._settings.controller.poll_seconds)

        await _forever(lambda: reconciler.converge(replica), pause)

    async def _wait_for_work(self) -> None:
        await _wait(self._work, self._settings.controller.poll_seconds)

    async def _serve(self, cold: ColdLoads) -> None:
        settings = self._settings.controller
        api = create_controller_api(
            read_or_create_secret(self._settings, "internal"), self.fleet, cold.ensure, self.wake
        )
        server = _Server(uvicorn.Config(api, log_config=None, access_log=False, lifespan="off"))
        with socket.create_server((settings.host, settings.port)) as listening:
            self.port = listening.getsockname()[1]
            self.is_serving.set()
            try:
                await server.serve(sockets=[listening])
            finally:
                server.force_exit = True  # whoever waits for a load asks again, or is told 503 by its worker
                await server.shutdown()


class _Server(uvicorn.Server):
    """Leaves the signals to `serve`, which stops the loops as well."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _forever(step: Callable[[], Awaitable[None]], pause: Callable[[], Awaitable[None]]) -> None:
    """A loop of the controller: one step's fault is logged and the next step is taken all the same."""
    while True:
        try:
            await step()
        except Exception:  # noqa: BLE001 - the loop's outermost edge: one fault must not end it
            _log.exception("a step of the controller failed")
            await asyncio.sleep(_FAULT_PAUSE_SECONDS)
        await pause()


async def _wait(event: asyncio.Event, seconds: float) -> None:
    """Until the event is set, at most so long; it is clear afterwards."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
    event.clear()


async def serve(settings: Settings) -> None:
    """Run the controller until SIGTERM or SIGINT."""
    database = Database(settings.database_url)
    await asyncio.to_thread(database.migrate)
    running = asyncio.create_task(Controller(settings, database).run())
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, running.cancel)
    try:
        await running
    except asyncio.CancelledError:
        _log.info("the controller has stopped")
    finally:
        database.dispose()


def run(settings: Settings) -> None:
    """The process's whole life."""
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells of each request, and we read health often
    asyncio.run(serve(settings))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    run(load_settings())
