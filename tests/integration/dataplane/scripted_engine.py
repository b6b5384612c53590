"""An engine whose every byte a test decides, and bytes that engines send."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import orjson


@dataclass(slots=True)
class Received:
    """A request as the engine got it."""

    line: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        return orjson.loads(self.body)


Script = Callable[[Received, asyncio.StreamWriter], Awaitable[None]]


class ScriptedEngine:
    """An engine that answers with what the test says; `script` writes the answer's bytes."""

    def __init__(self) -> None:
        self.script: Script = answer_chat
        self.received: list[Received] = []
        self.connections = 0
        self.open = 0
        self.disconnected = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0

    async def start(self, port: int = 0) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Refuse connections from now on, and reset those that are open."""
        if self._server is not None:
            self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()

    def close_connections(self) -> None:
        """Close what is open, as an engine does with connections that were idle for too long."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        self._writers.add(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                headers = {
                    name.lower(): value for name, value in (line.split(": ", 1) for line in head[1:] if line)
                }
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                request = Received(head[0], headers, body)
                self.received.append(request)
                watch = asyncio.ensure_future(self._watch(reader))
                try:
                    await self.script(request, writer)
                finally:
                    watch.cancel()
                    await asyncio.gather(watch, return_exceptions=True)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open -= 1
            self._writers.discard(writer)
            writer.close()

    async def _watch(self, reader: asyncio.StreamReader) -> None:
        """Notice that the gateway has gone while an answer is under way."""
        while not reader.at_eof() and reader.exception() is None:  # noqa: ASYNC110 - it has no event for this
            await asyncio.sleep(0.005)
        self.disconnected.set()


def chat_json(model: str, text: str = "Hello.") -> bytes:
    return orjson.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": model,
            "choices": [
                {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            ],
            "usage": {"prompt_tokens": 5, "total_tokens": 7, "completion_tokens": 2},
        }
    )


def chunk_json(model: str, text: str) -> bytes:
    return orjson.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": model,
            "choices": [{"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": None}],
        }
    )


def whole(status: int, body: bytes, content_type: str = "application/json") -> bytes:
    return (
        f"HTTP/1.1 {status} X\r\ncontent-type: {content_type}\r\ncontent-length: {len(body)}\r\n\r\n".encode()
        + body
    )


STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)


def event(payload: bytes) -> bytes:
    text = b"data: " + payload + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(text), text)


STREAM_END = event(b"[DONE]") + b"0\r\n\r\n"


async def answer_chat(request: Received, writer: asyncio.StreamWriter) -> None:
    """What a healthy engine does."""
    model = request.json["model"]
    if request.json.get("stream"):
        writer.write(STREAM_HEAD)
        for word in ("Hello", " world", "."):
            writer.write(event(chunk_json(model, word)))
            await writer.drain()
            await asyncio.sleep(0)
        writer.write(STREAM_END)
    else:
        writer.write(whole(200, chat_json(model)))
    await writer.drain()
