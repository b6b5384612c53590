"""Tells a client that has only ended its own side of the connection from one that has gone.

Both send the same FIN. But a client that still reads takes whatever we send, and one that has gone answers it
with a reset. So if nothing has been answered yet an interim answer is sent, which every HTTP/1.1 client
ignores, and then the state of the socket is looked at: CLOSE_WAIT while somebody reads, CLOSE after a reset.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Final

from gateway.dataplane.answers import PROCESSING

#: `TCP_CLOSE` of Linux, the first byte of `struct tcp_info`.
_TCP_CLOSE: Final = 7
_FIRST_LOOK_SECONDS: Final = 0.02
_NEXT_LOOK_SECONDS: Final = 0.1


class HalfClose:
    """Watches one connection whose client has sent its FIN, until `stop`."""

    def __init__(self, transport: asyncio.Transport, on_gone: Callable[[], None]) -> None:
        self._transport = transport
        self._on_gone = on_gone
        self._timer: asyncio.TimerHandle | None = None

    @staticmethod
    def can_watch(transport: asyncio.Transport) -> bool:
        """Whether the system tells the socket's state."""
        return hasattr(socket, "TCP_INFO") and transport.get_extra_info("socket") is not None

    def start(self, *, nothing_answered: bool) -> None:
        """Begin to look; without an answer under way, provoke the reset of a client that has gone."""
        if nothing_answered:
            self._transport.write(PROCESSING)
        self._look_in(_FIRST_LOOK_SECONDS)

    def stop(self) -> None:
        """The connection is closed."""
        if self._timer is not None:
            self._timer.cancel()

    def _look_in(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._look)

    def _look(self) -> None:
        raw = self._transport.get_extra_info("socket")
        state: bytes = raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
        if state[0] == _TCP_CLOSE:
            self._on_gone()
        else:
            self._look_in(_NEXT_LOOK_SECONDS)
