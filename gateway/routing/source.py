"""Keeps a worker's routing snapshot fresh: a thread reads a new one when the routing revision moves."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable

from sqlalchemy.exc import SQLAlchemyError

from gateway.routing.revision_watch import RevisionWatch, open_watch
from gateway.routing.snapshot import Snapshot
from gateway.routing.snapshot_rows import read_snapshot
from loraway.database import Database
from loraway.settings import Settings

_LOG = logging.getLogger(__name__)

#: How long the thread waits in one go, so how long `stop` may take.
_WAIT_SECONDS = 0.1
#: A database that fails is asked again after this time; the last snapshot stays in use.
_RETRY_SECONDS = 0.5


class SnapshotSource:
    """Owns the current snapshot. The event loop replaces it and reads it; the thread only reads rows."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._poll_seconds = settings.gateway.snapshot_poll_seconds
        self._stores_by_default = settings.traffic.store_by_default
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiters: set[asyncio.Future[None]] = set()
        #: The latest snapshot; one attribute read on the hot path.
        self.current = Snapshot()

    async def start(self) -> None:
        """Read the first snapshot, then watch."""
        self._loop = asyncio.get_running_loop()
        self.current = await asyncio.to_thread(self._read)
        self._stopping.clear()
        self._thread = threading.Thread(target=self._watch, name="routing-snapshot", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """End the watch."""
        self._stopping.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            await asyncio.to_thread(thread.join)

    async def wait_for(self, predicate: Callable[[Snapshot], bool], deadline: float) -> bool:
        """Wait until a snapshot satisfies the predicate; False when `deadline` (loop time) came first."""
        loop = asyncio.get_running_loop()
        while not predicate(self.current):
            moved: asyncio.Future[None] = loop.create_future()
            self._waiters.add(moved)
            try:
                async with asyncio.timeout_at(deadline):
                    await moved
            except TimeoutError:
                return False
            finally:
                self._waiters.discard(moved)
        return True

    # -- the thread

    def _watch(self) -> None:
        watch: RevisionWatch | None = None
        failures: tuple[type[Exception], ...] = (SQLAlchemyError, _driver_error(self._database))
        while not self._stopping.is_set():
            try:
                if watch is None:
                    watch = open_watch(self._database, self._poll_seconds)
                if watch.wait(self.current.revision, _WAIT_SECONDS) != self.current.revision:
                    self._hand_over(self._read())
            except failures as error:
                _LOG.warning("routing: the snapshot could not be read, the last one stays in use: %s", error)
                if watch is not None:
                    watch.close()
                    watch = None
                self._stopping.wait(_RETRY_SECONDS)
        if watch is not None:
            watch.close()

    def _read(self) -> Snapshot:
        with self._database.read() as connection:
            return read_snapshot(connection, self._stores_by_default)

    def _hand_over(self, snapshot: Snapshot) -> None:
        assert self._loop is not None
        if self._stopping.is_set() or self._loop.is_closed():
            return
        published = threading.Event()
        self._loop.call_soon_threadsafe(self._publish, snapshot, published)
        # Not to read the same revision again before the loop has taken it over.
        published.wait(_RETRY_SECONDS)

    # -- the event loop

    def _publish(self, snapshot: Snapshot, published: threading.Event) -> None:
        self.current = snapshot
        published.set()
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)


def _driver_error(database: Database) -> type[Exception]:
    """What the driver raises where its connection is used directly."""
    error: type[Exception] = database.engine.dialect.loaded_dbapi.Error
    return error
