"""The traffic log: stored completions go to the database in batches, off the hot path and durably.

An exchange hands over the finished record and holds the last bytes of its answer until the future says that
the record is committed (decision 6). One thread writes: whatever came while it committed is its next batch.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import BindParameter, Connection, bindparam, insert
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from gateway.record import RequestRecord
from gateway.traffic_row import CompletionRow, build_row
from loraway import schema
from loraway.database import Database
from loraway.errors import LorawayError, Unavailable, UpstreamFailed
from loraway.settings import TrafficSettings

_LOG = logging.getLogger(__name__)

#: Records in one transaction.
BATCH_LIMIT: Final = 512
#: A database that does not answer is tried again for this long; then the clients are told.
RETRY_SECONDS: Final = 5.0
_FIRST_PAUSE_SECONDS: Final = 0.05


class NotStored(Unavailable):
    """The completion could not be stored."""


@dataclass(slots=True)
class _Waiting:
    """A record on its way to the database and the exchange that waits for it."""

    record: RequestRecord
    ended: float
    future: asyncio.Future[None]


class TrafficLog:
    """Stores completions.

    `store` is called on the event loop and owns the counters below; the writer thread owns the connection.
    They meet in a queue, and the thread answers through `call_soon_threadsafe`, once a batch.
    """

    def __init__(
        self, database: Database, settings: TrafficSettings, retry_seconds: float = RETRY_SECONDS
    ) -> None:
        self._database = database
        self._settings = settings
        self._retry_seconds = retry_seconds
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._statements = _Statements(database)
        self._connection: Connection | None = None
        self.waiting = 0
        self.stored = 0
        self.failed = 0

    def start(self) -> None:
        """Start the writer; call it on the event loop whose exchanges store."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="traffic-writer", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Write everything that was handed over, then end the writer."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.put(None)
            await asyncio.to_thread(thread.join)

    def store(self, record: RequestRecord) -> asyncio.Future[None]:
        """Resolves when the record is committed; holds an exception when it never will be.

        Raises `NotStored` at once when too many wait or the log is not running.
        """
        if self._thread is None or self._loop is None:
            raise NotStored("The traffic log is not running; the completion was not stored.")
        if self.waiting >= self._settings.queue_limit:
            self.failed += 1
            raise NotStored(
                f"{self.waiting} completions already wait for the database; this one was not stored.",
                retry_after_seconds=1,
            )
        future = self._loop.create_future()
        self.waiting += 1
        self._queue.put(_Waiting(record, record.ended or time.perf_counter(), future))
        return future

    # -- the writer thread

    def _run(self) -> None:
        batch: list[_Waiting] = []
        while (first := self._queue.get()) is not None:
            # Who stores one after the other is answered at once; those that come together share a commit.
            if len(batch) > 1:
                time.sleep(self._settings.flush_seconds)
            batch = [first]
            is_last = self._gather(batch)
            self._write_or_refuse(batch)
            if is_last:
                break
        self._disconnect()

    def _gather(self, batch: list[_Waiting]) -> bool:
        """Add what waits to the batch; whether the end of all work was among it."""
        while len(batch) < BATCH_LIMIT and not self._queue.empty():
            following = self._queue.get()
            if following is None:
                return True
            batch.append(following)
        return False

    def _write_or_refuse(self, batch: list[_Waiting]) -> None:
        try:
            self._write(batch)
        except Exception:  # noqa: BLE001 - the thread's outermost edge: without it every later request would hang
            _LOG.exception("traffic: %d completions were not stored", len(batch))
            failure = NotStored("The traffic log failed; the completion was not stored.")
            self._answer([], [(waiting, failure) for waiting in batch])

    def _write(self, batch: list[_Waiting]) -> None:
        """Commit a batch and tell each exchange what became of its record."""
        rows: list[CompletionRow] = []
        written: list[_Waiting] = []
        refused: list[tuple[_Waiting, LorawayError]] = []
        for waiting in batch:
            try:
                rows.append(build_row(waiting.record, waiting.ended))
                written.append(waiting)
            except LorawayError as error:
                refused.append((waiting, error))
            except (ValueError, KeyError, TypeError, AttributeError, IndexError):
                # The engine's answer is foreign data: whatever is wrong with its shape ends here.
                refused.append((waiting, UpstreamFailed("The engine's answer is not a chat completion.")))
        if rows:
            lost = self._commit(rows)
            refused += [(written[index], error) for index, error in lost.items()]
            written = [waiting for index, waiting in enumerate(written) if index not in lost]
        self._answer(written, refused)

    def _commit(self, rows: Sequence[CompletionRow]) -> dict[int, LorawayError]:
        """Write the rows in one transaction; returns what went wrong, by the row's place.

        A database that cannot be reached or is busy is tried again. A row that it refuses would take the
        whole batch with it, so then each row gets a transaction of its own.
        """
        deadline = time.monotonic() + self._retry_seconds
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                self._insert(rows)
                return {}
            except SQLAlchemyError as error:
                self._disconnect()
                if not _may_pass(error):
                    return self._commit_singly(rows, error)
                if time.monotonic() + pause > deadline:
                    _LOG.error("traffic: %d completions were not stored: %s", len(rows), _reason(error))
                    failure = NotStored("The database does not answer; the completion was not stored.")
                    return dict.fromkeys(range(len(rows)), failure)
                _LOG.warning("traffic: trying again in %.2f s: %s", pause, _reason(error))
                time.sleep(pause)
                pause = min(pause * 2, 1.0)

    def _insert(self, rows: Sequence[CompletionRow]) -> None:
        """One transaction on the writer's own connection: taking one from the pool costs as much again."""
        if self._connection is None:
            self._connection = self._database.engine.connect()
        with self._connection.begin():
            self._statements.insert(self._connection, rows)

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _commit_singly(
        self, rows: Sequence[CompletionRow], error: SQLAlchemyError
    ) -> dict[int, LorawayError]:
        if len(rows) == 1:
            _LOG.error("traffic: the database refuses a completion: %s", _reason(error))
            return {0: NotStored("The database refuses this completion; it was not stored.")}
        lost: dict[int, LorawayError] = {}
        for index, row in enumerate(rows):
            for failure in self._commit([row]).values():
                lost[index] = failure
        return lost

    def _answer(self, written: list[_Waiting], refused: list[tuple[_Waiting, LorawayError]]) -> None:
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._resolve, written, refused)

    # -- back on the event loop

    def _resolve(self, written: list[_Waiting], refused: list[tuple[_Waiting, LorawayError]]) -> None:
        self.waiting -= len(written) + len(refused)
        self.stored += len(written)
        self.failed += len(refused)
        for waiting in written:
            if not waiting.future.done():  # the client may have gone and its exchange with it
                waiting.future.set_result(None)
        for waiting, error in refused:
            if not waiting.future.done():
                waiting.future.set_exception(error)


class _Statements:
    """The two inserts, compiled once for the database in use: per row, compiling would cost the most."""

    def __init__(self, database: Database) -> None:
        dialect = database.engine.dialect
        completions, metadata = schema.completions, schema.completion_metadata
        # JSON columns take text as it is here: `build_row` wrote it already.
        self.columns = [column.name for column in completions.columns]
        named: dict[str, BindParameter[object]] = {name: bindparam(name) for name in self.columns}
        self._completion = str(insert(completions).values(named).compile(dialect=dialect))
        pair: dict[str, BindParameter[object]] = {
            column.name: bindparam(column.name) for column in metadata.columns
        }
        self._pair = str(insert(metadata).values(pair).compile(dialect=dialect))
        self._is_positional = dialect.positional

    def insert(self, connection: Connection, rows: Sequence[CompletionRow]) -> None:
        """Insert the rows and their metadata pairs."""
        pairs = [
            {"completion_id": row.values["id"], "key": key, "value": value}
            for row in rows
            for key, value in row.metadata.items()
        ]
        if self._is_positional:
            completions = [tuple(row.values[name] for name in self.columns) for row in rows]
            connection.exec_driver_sql(self._completion, completions)
            if pairs:
                connection.exec_driver_sql(self._pair, [tuple(pair.values()) for pair in pairs])
            return
        connection.exec_driver_sql(self._completion, [row.values for row in rows])
        if pairs:
            connection.exec_driver_sql(self._pair, pairs)


def _may_pass(error: SQLAlchemyError) -> bool:
    """Whether trying again can help: the connection was lost, or the database is busy, full or starting."""
    if not isinstance(error, DBAPIError):
        return True  # no connection to be had from the pool
    return error.connection_invalidated or type(error).__name__ in ("OperationalError", "InterfaceError")


def _reason(error: SQLAlchemyError) -> str:
    """The error without the statement's parameters, which hold what users wrote."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    return f"{type(cause).__name__}: {str(cause).splitlines()[0] if str(cause) else ''}"
