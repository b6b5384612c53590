"""Looks at every client connection now and then, for the limits on time: one timer for all of them."""

from __future__ import annotations

import asyncio
from time import perf_counter

from gateway.dataplane.protocol import ClientConnection
from loraway.settings import Timeouts

_LONGEST_SECONDS = 1.0


class Sweep:
    """Owns the set of this worker's client connections; they enter and leave it themselves."""

    def __init__(self, timeouts: Timeouts) -> None:
        shortest = min(
            timeouts.first_byte_seconds,
            timeouts.between_chunks_seconds,
            timeouts.total_seconds,
            timeouts.request_arrival_seconds,
            timeouts.idle_seconds,
        )
        self._interval_seconds = min(_LONGEST_SECONDS, shortest / 4)
        self._timer: asyncio.TimerHandle | None = None
        self.connections: set[ClientConnection] = set()

    def start(self) -> None:
        """Begin; call it on the event loop."""
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._interval_seconds, self._look)

    def stop(self) -> None:
        """End."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self.start()
        now = perf_counter()
        for connection in list(self.connections):
            connection.check(now)
