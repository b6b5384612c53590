"""A client connection without a socket: bytes in, bytes out, on an event loop of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import httptools
from uvicorn.config import Config
from uvicorn.server import ServerState

from gateway.dataplane.plane import DataPlane
from gateway.dataplane.protocol import ClientConnection
from gateway.record import RequestRecord
from gateway.routing.snapshot import Snapshot
from loraway.settings import GatewaySettings

_DEADLINE_SECONDS = 20
#: More than any answer here needs; a request that is not whole waits for the rest all the same.
_TURNS_OF_THE_LOOP = 200


class Transport(asyncio.Transport):
    """Keeps what is written; says whether it may be fed."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.is_paused = False
        self.has_eof = False
        self._is_closing = False

    def write(self, data: Any) -> None:
        assert not self._is_closing and not self.has_eof
        self.written += data

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.has_eof = True

    def close(self) -> None:
        self._is_closing = True

    abort = close

    def is_closing(self) -> bool:
        return self._is_closing

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


class _Events:
    def __init__(self) -> None:
        self.started = self.ended = 0

    def on_start(self) -> None:
        self.started += 1

    def on_end(self, record: RequestRecord) -> None:
        self.ended += 1


class _Snapshots:
    current = Snapshot()


async def echo_app(scope: Any, receive: Any, send: Any) -> None:
    """A control plane that says what it was asked."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    answer = b"%b %b %d" % (scope["method"].encode(), scope["path"].encode(), len(body))
    request_id = dict(scope["headers"]).get(b"x-request-id", b"-")
    headers = [(b"content-length", b"%d" % len(answer)), (b"x-request-id", request_id)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else answer})


class Answers:
    """The answers in a connection's output."""

    def __init__(self, written: bytes) -> None:
        self.found: list[tuple[int, str]] = []
        self._request_id = "-"
        self._parser = httptools.HttpResponseParser(self)
        self._parser.feed_data(written)

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"x-request-id":
            self._request_id = value.decode()

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200:
            self.found.append((status, self._request_id))


def exchange_bytes(pieces: Sequence[bytes], settings: GatewaySettings | None = None) -> tuple[bytes, bool]:
    """Feed the pieces one by one; what came back, and whether the connection was closed or is ending."""
    return asyncio.run(asyncio.wait_for(_exchange(pieces, settings or GatewaySettings()), _DEADLINE_SECONDS))


async def _exchange(pieces: Sequence[bytes], settings: GatewaySettings) -> tuple[bytes, bool]:
    events = _Events()
    plane = DataPlane(
        settings,
        _Snapshots(),
        cast(Any, None),
        cast(Any, None),
        cast(Any, None),
        cast(Any, None),
        events,
        cast(Any, _Events()),
    )
    config = Config(echo_app, lifespan="off", log_config=None, access_log=False)
    config.load()
    state = ServerState()
    connection = ClientConnection(plane, set(), config, state, {})
    transport = Transport()
    connection.connection_made(transport)
    for piece in pieces:
        while transport.is_paused and not transport.is_closing():  # noqa: ASYNC110 - a loop without IO
            await asyncio.sleep(0)
        if transport.is_closing():
            break
        connection.data_received(piece)
    for _ in range(_TURNS_OF_THE_LOOP):
        if not state.tasks:
            break
        await asyncio.sleep(0)
    is_over = transport.is_closing() or transport.has_eof
    transport.close()
    connection.connection_lost(None)
    while state.tasks:  # noqa: ASYNC110 - a loop without IO; a client that is gone ends everything
        await asyncio.sleep(0)
    assert events.started == events.ended
    return bytes(transport.written), is_over
