"""HTTP/1.1 as the simulator serves it: one request at a time, chunks as the engine writes them.

Small on purpose: a test engine must cost less than what it is there to test.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import cast

import httptools
import orjson

Handler = Callable[["Request", "Responder"], Awaitable[None]]

_STATUS_LINES = {int(s): f"HTTP/1.1 {int(s)} {s.phrase}\r\n".encode() for s in HTTPStatus}
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass(slots=True)
class Request:
    """One whole request."""

    method: str = ""
    path: str = ""
    query: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    is_kept_alive: bool = True


class Refusal(Exception):
    """An answer that is an error: raised where the fault is found, written in one place."""

    def __init__(self, status: int, body: object, headers: dict[str, str] | None = None) -> None:
        super().__init__(f"{status}: {body}")
        self.status = status
        self.body = body
        self.headers = headers or {}


class Responder:
    """Writes the answer to one request. Every method raises ConnectionResetError when the client is gone."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.has_started = False

    def send(
        self,
        status: int,
        body: bytes,
        content_type: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        """A whole answer at once."""
        head = [_STATUS_LINES[status], b"content-length: %d\r\n" % len(body)]
        if content_type is not None:
            head.append(b"content-type: %b\r\n" % content_type.encode())
        for name, value in (headers or {}).items():
            head.append(f"{name}: {value}\r\n".encode())
        self.has_started = True
        self._connection.write(b"".join(head) + b"\r\n" + body)

    def send_json(self, status: int, body: object, headers: dict[str, str] | None = None) -> None:
        self.send(status, orjson.dumps(body), "application/json", headers)

    def start_stream(self) -> None:
        """The head of a server-sent event stream."""
        self.has_started = True
        self._connection.write(
            _STATUS_LINES[200]
            + b"content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
        )

    async def send_event(self, payload: object) -> None:
        """One event, in one HTTP chunk; waits while the client reads too slowly."""
        self._connection.write(_chunk(_event(payload)))
        await self._connection.drained()

    async def break_event(self, payload: object) -> None:
        """Half of an event, then a reset of the connection."""
        chunk = _chunk(_event(payload))
        self._connection.write(chunk[: len(chunk) // 2])
        await asyncio.sleep(0.02)  # let the half leave: a reset throws away what was not sent
        self._connection.reset()

    def end_stream(self) -> None:
        """`data: [DONE]` and the last chunk."""
        self._connection.write(_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")


class Connection(asyncio.Protocol):
    """One client connection. Requests that are pipelined are answered in their order."""

    def __init__(self, handle: Handler, connections: set[Connection]) -> None:
        self._handle = handle
        self._connections = connections
        self._parser = httptools.HttpRequestParser(self)
        self._waiting: deque[Request] = deque()
        self._task: asyncio.Task[None] | None = None
        self._transport: asyncio.Transport
        self._writable = asyncio.Event()
        self._writable.set()
        self._target = b""
        self._body: list[bytes] = []
        self._request = Request()

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._connections.add(self)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.write(_STATUS_LINES[400] + b"content-length: 0\r\nconnection: close\r\n\r\n")
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._connections.discard(self)
        self._writable.set()
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # --- httptools callbacks

    def on_message_begin(self) -> None:
        self._request, self._target, self._body = Request(), b"", []

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._request.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self._request.headers.get("expect", "").lower() == "100-continue":
            self.write(_CONTINUE)

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        request = self._request
        request.method = self._parser.get_method().decode()
        request.path, _, request.query = self._target.decode("latin-1").partition("?")
        request.body = b"".join(self._body)
        request.is_kept_alive = self._parser.should_keep_alive()
        self._waiting.append(request)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._serve())

    # --- for Responder and the replica

    def write(self, data: bytes) -> None:
        if self._transport.is_closing():
            raise ConnectionResetError("the client is gone")
        self._transport.write(data)

    async def drained(self) -> None:
        if not self._writable.is_set():
            await self._writable.wait()

    def reset(self) -> None:
        """End the connection with a TCP reset, as a process that was killed does."""
        raw = self._transport.get_extra_info("socket")
        if raw is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def close_when_idle(self) -> None:
        """Close now unless a request is being answered."""
        if self._task is None:
            self._transport.close()

    async def _serve(self) -> None:
        try:
            while self._waiting:
                request = self._waiting.popleft()
                await self._answer(request, Responder(self))
                if not request.is_kept_alive:
                    self._transport.close()
                    return
        except ConnectionResetError:
            pass
        except BaseException:
            self._transport.abort()  # else the client would wait for an answer for ever
            raise
        finally:
            self._task = None

    async def _answer(self, request: Request, responder: Responder) -> None:
        try:
            await self._handle(request, responder)
        except Refusal as refusal:
            if isinstance(refusal.body, bytes):
                responder.send(refusal.status, refusal.body, "text/plain; charset=utf-8", refusal.headers)
            else:
                responder.send_json(refusal.status, refusal.body, refusal.headers)


def _event(payload: object) -> bytes:
    return b"data: " + orjson.dumps(payload) + b"\n\n"


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)
