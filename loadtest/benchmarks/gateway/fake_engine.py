"""A cheap engine to measure gateways with: fixed JSON, paced streams and bursts; the request says which.

`"stop": ["<paced:75>"]` streams 75 chunks 20 ms apart, `"<burst:75>"` streams them as fast as they go,
anything else gets one JSON answer. (A router that writes the body anew keeps `stop`, but not every field.)
It does no more than this, so that the machine's time is the gateway's.
"""

from __future__ import annotations

import asyncio
import re
import sys
from typing import Final, cast

import uvloop

CHUNK_SECONDS: Final = 0.020
BURST_CHUNKS: Final = 10
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_MODE: Final = re.compile(rb'"<(paced|burst):(\d+)>"')

_COMMON: Final = b'"created":1700000000,"model":"bench-engine"'
_ANSWER: Final = (
    b'{"id":"chatcmpl-0123456789abcdef","object":"chat.completion",' + _COMMON + b',"choices":[{"index":0,'
    b'"message":{"role":"assistant","content":"' + b"An answer of some words. " * 16 + b'"},"logprobs":null,'
    b'"finish_reason":"stop"}],"usage":{"prompt_tokens":200,"completion_tokens":80,"total_tokens":280}}'
)
_EVENT: Final = (
    b'data: {"id":"chatcmpl-0123456789abcdef","object":"chat.completion.chunk",' + _COMMON + b',"choices":'
    b'[{"index":0,"delta":{"content":" word"},"logprobs":null,"finish_reason":null}]}\n\n'
)
_STREAM_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)


def _json_response(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
        len(body),
        body,
    )


def _framed(text: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(text), text)


_JSON: Final = _json_response(_ANSWER)
#: What routers ask about a worker before they send it anything.
_ABOUT: Final = _json_response(
    b'{"object":"list","data":[{"id":"bench-engine","object":"model"}],"model_path":"bench-engine",'
    b'"served_model_name":"bench-engine","is_generation":true,"status":"ok"}'
)
_CHUNK: Final = _framed(_EVENT)
_BURST: Final = _CHUNK * BURST_CHUNKS
_END: Final = _framed(b"data: [DONE]\n\n") + b"0\r\n\r\n"


class FakeEngine(asyncio.Protocol):
    """One connection; requests are answered in order, one at a time."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._received = b""
        self._timer: asyncio.Handle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._received = self._received + data if self._received else data
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return
        length = _LENGTH.search(self._received, 0, end)
        size = end + 4 + (int(length[1]) if length else 0)
        if len(self._received) < size:
            return
        request, self._received = self._received[:size], self._received[size:]
        self._answer(request)

    def _answer(self, request: bytes) -> None:
        if not request.startswith(b"POST"):
            self._transport.write(_ABOUT)
            return
        mode = _MODE.search(request)
        if mode is None:
            self._transport.write(_JSON)
            return
        count = int(mode[2])
        if mode[1] == b"paced":
            self._transport.write(_STREAM_HEAD + _CHUNK)
            self._pace(count - 1, self._loop.time() + CHUNK_SECONDS)
        else:
            self._transport.write(_STREAM_HEAD)
            self._burst(count)

    def _pace(self, left: int, due: float) -> None:
        if left <= 0:
            self._transport.write(_END)
            return
        self._timer = self._loop.call_at(due, self._next_paced, left, due)

    def _next_paced(self, left: int, due: float) -> None:
        if not self._transport.is_closing():
            self._transport.write(_CHUNK)
            self._pace(left - 1, due + CHUNK_SECONDS)

    def _burst(self, left: int) -> None:
        if self._transport.is_closing():
            return
        if left <= 0:
            self._transport.write(_END)
            return
        self._transport.write(_BURST if left >= BURST_CHUNKS else _CHUNK * left)
        self._timer = self._loop.call_soon(self._burst, left - BURST_CHUNKS)


async def serve(port: int) -> None:
    """Answer on this port of loopback until killed."""
    server = await asyncio.get_running_loop().create_server(FakeEngine, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
