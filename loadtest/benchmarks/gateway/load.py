"""The load: raw connections that ask as fast as they are answered, or hold paced streams open."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Final, cast

import orjson

from loadtest.benchmarks.gateway.fake_engine import CHUNK_SECONDS

#: One request in this many asks to be stored.
STORE_EVERY: Final = 10
BURST_STREAM_CHUNKS: Final = 100
#: Beyond a load's own time, until what is not answered counts as an error.
GRACE_SECONDS: Final = 15
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_EVENT: Final = b"data: "
_WORDS: Final = 'The quick brown fox asks the model about "Bluefin-7" and other things.\nThen it waits. '


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go and what they must carry."""

    port: int
    model: str
    api_key: str


@dataclass(slots=True)
class LoadFigures:
    """What a load has seen; the connections count into it."""

    requests: int = 0
    chunks: int = 0
    errors: int = 0
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    first_error: str = ""

    def fail(self, reason: str) -> None:
        self.errors += 1
        self.first_error = self.first_error or reason


def chat_request(target: Target, prompt_bytes: int, mode: str | None = None, store: bool = False) -> bytes:
    """One HTTP request, ready to send; `mode` as the fake engine understands it (`paced:75`)."""
    text = (_WORDS * (prompt_bytes // len(_WORDS) + 1))[:prompt_bytes]
    body = orjson.dumps(
        {
            "model": target.model,
            "messages": [
                {"role": "system", "content": "You are a helpful assistant."},
                {"role": "user", "content": text},
            ],
            "max_tokens": 256,
            "temperature": 0.7,
            **({"stop": [f"<{mode}>"], "stream": True} if mode else {"stream": False}),
            **({"store": True} if store else {}),
        }
    )
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{target.port}\r\n"
        f"authorization: Bearer {target.api_key}\r\ncontent-type: application/json\r\n"
        f"accept: */*\r\nuser-agent: loraway-bench\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def request_mix(build: Callable[[bool], bytes]) -> Iterator[bytes]:
    """Requests without end, one in `STORE_EVERY` with `store`."""
    plain, stored = build(False), build(True)
    return cycle([plain] * (STORE_EVERY - 1) + [stored])


class _Client(asyncio.Protocol):
    """One connection that sends its next request when the answer before it is whole."""

    def __init__(self, figures: LoadFigures, requests: Iterator[bytes], deadline: float) -> None:
        self._figures = figures
        self._requests = requests
        self._deadline = deadline
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self._figures.fail(f"connection lost: {exc}")
            self.done.set_result(None)

    def close(self) -> None:
        if not self.done.done():
            self.done.set_result(None)
        self._transport.close()

    def _send(self) -> None:
        self._received = b""
        self._sent_at = time.perf_counter()
        self._transport.write(next(self._requests))

    def _answered(self) -> None:
        now = time.perf_counter()
        self._figures.requests += 1
        self._figures.latencies.append(now - self._sent_at)
        if now < self._deadline:
            self._send()
        else:
            self.close()


class JsonClient(_Client):
    """Reads answers with a length or in chunks."""

    def data_received(self, data: bytes) -> None:
        received = self._received = self._received + data if self._received else data
        end = received.find(b"\r\n\r\n")
        if end < 0:
            return
        length = _LENGTH.search(received, 0, end)
        is_whole = len(received) >= end + 4 + int(length[1]) if length else received.endswith(b"0\r\n\r\n")
        if not is_whole:
            return
        if not received.startswith(b"HTTP/1.1 200"):
            self._figures.fail(received[:300].decode(errors="replace"))
            self.close()
            return
        self._answered()


class StreamClient(_Client):
    """Counts events; an answer is whole at the end of its chunked body."""

    def data_received(self, data: bytes) -> None:
        tail = self._received
        if not tail and not data.startswith(b"HTTP/1.1 200"):
            self._figures.fail(data[:300].decode(errors="replace"))
            self.close()
            return
        joined = tail + data
        # The tail is shorter than an event's mark, so that no event is counted twice and none is missed.
        self._figures.chunks += joined.count(_EVENT)
        if joined.endswith(b"0\r\n\r\n"):
            self._figures.chunks -= 1  # [DONE]
            self._answered()
        else:
            self._received = joined[1 - len(_EVENT) :]


async def closed_loop(
    client: type[_Client], target: Target, requests: Iterator[bytes], connections: int, seconds: float
) -> LoadFigures:
    """Keep this many connections busy for `seconds`; each asks again as soon as it is answered."""
    figures = LoadFigures()
    started = time.perf_counter()
    clients = await _connect(client, target, requests, connections, figures, started + seconds)
    try:
        async with asyncio.timeout(seconds + GRACE_SECONDS):
            await asyncio.gather(*(each.done for each in clients))
    except TimeoutError:
        figures.fail(f"answers were outstanding after {GRACE_SECONDS} s")
        _close(clients)
    figures.seconds = time.perf_counter() - started
    return figures


async def paced_streams(
    target: Target, streams: int, seconds: float, prompt_bytes: int, at_window: Callable[[LoadFigures], None]
) -> LoadFigures:
    """Hold streams of one chunk each 20 ms; `at_window` is called at the start and the end of a window of
    `seconds` in which all are running, so that neither their starts nor their ends are measured."""
    chunks = int((seconds + 1.0) / CHUNK_SECONDS)
    mix = request_mix(lambda store: chat_request(target, prompt_bytes, f"paced:{chunks}", store))
    figures = LoadFigures()
    clients = await _connect(StreamClient, target, mix, streams, figures, 0.0)
    try:
        async with asyncio.timeout(2 * seconds + GRACE_SECONDS):
            while figures.chunks < streams and not figures.errors:  # noqa: ASYNC110 - they only count
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.2)
            at_window(figures)
            await asyncio.sleep(seconds)
            at_window(figures)
            await asyncio.gather(*(each.done for each in clients))
    except TimeoutError:
        figures.fail(f"streams were unfinished after {GRACE_SECONDS} s")
        _close(clients)
    return figures


def _close(clients: Sequence[_Client]) -> None:
    for client in clients:
        client.close()


async def _connect(
    client: type[_Client],
    target: Target,
    requests: Iterator[bytes],
    connections: int,
    figures: LoadFigures,
    deadline: float,
) -> list[_Client]:
    loop = asyncio.get_running_loop()
    clients = []
    for _ in range(connections):
        _, protocol = await loop.create_connection(
            lambda: client(figures, requests, deadline), "127.0.0.1", target.port
        )
        clients.append(protocol)
    return clients
