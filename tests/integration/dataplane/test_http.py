"""HTTP/1.1 on the client's side, as bytes on a socket."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from gateway.dataplane.request import CHAT_PATH
from tests.integration.dataplane.running_gateway import BASE, Gateway, eventually
from tests.integration.dataplane.scripted_engine import (
    STREAM_END,
    STREAM_HEAD,
    Received,
    ScriptedEngine,
    answer_chat,
    chat_json,
    chunk_json,
    event,
    whole,
)

_CHAT = b"POST /v1/chat/completions HTTP/1.1\r\nHost: g\r\n"
_FILES = b"POST /v1/files HTTP/1.1\r\nHost: g\r\n"
BODY = {"model": BASE, "messages": [{"role": "user", "content": "Hi"}]}


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """One whole answer."""
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in head[1:] if line)}
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while size := int(await reader.readline(), 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readexactly(2)
    else:
        body = await reader.readexactly(int(headers.get("content-length", "0")))
    return int(head[0].split()[1]), headers, body


def code_of(body: bytes) -> str:
    return orjson.loads(body)["error"]["code"]


async def test_one_connection_mixes_both_planes_and_stays_open(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    reader, writer = await gateway.connect()
    listing = f"GET /v1/chat/completions HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {gateway.key}\r\n\r\n"
    for _ in range(2):
        writer.write(gateway.request(BODY))
        status, _, body = await read_answer(reader)
        assert (status, orjson.loads(body)["object"]) == (200, "chat.completion")
        writer.write(listing.encode())
        status, _, body = await read_answer(reader)
        assert (status, orjson.loads(body)["object"]) == (200, "list")
        writer.write(gateway.request({**BODY, "stream": True}))
        status, _, body = await read_answer(reader)
        assert (status, body.count(b"data: ")) == (200, 4)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: g\r\n\r\n")
        status, _, _ = await read_answer(reader)
        assert status == 200
    writer.close()

    assert engine.connections == 1


async def test_pipelined_requests_of_both_planes_are_answered_in_order(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    async def script(request: Received, writer: asyncio.StreamWriter) -> None:
        seconds, text = request.json["messages"][0]["content"].split()
        await asyncio.sleep(float(seconds))
        writer.write(whole(200, chat_json(BASE, text)))

    engine.script = script

    def chat(content: str) -> bytes:
        return gateway.request({"model": BASE, "messages": [{"role": "user", "content": content}]})

    listing = f"GET /v1/chat/completions HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {gateway.key}\r\n\r\n"
    upload = (
        f"POST /v1/feedback HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {gateway.key}\r\n"
        "Transfer-Encoding: chunked\r\n\r\n5\r\n[1,2,\r\n2\r\n3]\r\n0\r\n\r\n"
    )
    reader, writer = await gateway.connect()
    writer.write(
        chat("0.1 first") + listing.encode() + chat("0.05 second") + upload.encode() + chat("0 third")
    )
    answers = [await read_answer(reader) for _ in range(5)]
    writer.close()

    assert [status for status, _, _ in answers] == [200, 200, 200, 400, 200]
    texts = [body for _, _, body in answers]
    assert b"first" in texts[0] and b"second" in texts[2] and b"third" in texts[4]
    assert orjson.loads(texts[1])["object"] == "list"


async def test_chunked_request_body_is_taken(gateway: Gateway, engine: ScriptedEngine) -> None:
    payload = orjson.dumps(BODY)
    chunks = b"".join(b"1;ext=1\r\n%c\r\n" % byte for byte in payload)
    answer = await gateway.raw(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer %b\r\nConnection: close\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n%b0\r\nTrailer: x\r\n\r\n" % (gateway.key.encode(), chunks)
    )

    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"connection: close\r\n" in answer
    assert engine.received[0].json == BODY


async def test_100_continue_is_sent_before_the_body_is_awaited(gateway: Gateway) -> None:
    reader, writer = await gateway.connect()
    head, payload = gateway.request(BODY, "Expect: 100-continue").split(b"\r\n\r\n", 1)
    writer.write(head + b"\r\n\r\n")
    assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5) == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(payload)
    status, _, _ = await read_answer(reader)
    writer.close()

    assert status == 200


async def test_http_1_0_gets_an_unchunked_stream_and_a_closed_connection(gateway: Gateway) -> None:
    request = gateway.request({**BODY, "stream": True}, "Connection: keep-alive").replace(
        b"HTTP/1.1", b"HTTP/1.0"
    )
    answer = await gateway.raw(request)

    head, body = answer.split(b"\r\n\r\n", 1)
    assert b"transfer-encoding" not in head.lower()
    assert body.startswith(b"data: {") and body.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
async def test_other_methods_get_405_that_names_the_right_one(gateway: Gateway, method: str) -> None:
    answer = await gateway.raw(f"{method} /v1/embeddings HTTP/1.1\r\nHost: g\r\n\r\n".encode())

    assert answer.startswith(b"HTTP/1.1 405 ")
    assert b"allow: POST\r\n" in answer
    assert code_of(answer.split(b"\r\n\r\n", 1)[1]) == "method_not_allowed"


async def test_head_gets_no_body(gateway: Gateway) -> None:
    answer = await gateway.raw(b"HEAD /v1/embeddings HTTP/1.1\r\nHost: g\r\n\r\n")

    assert answer.startswith(b"HTTP/1.1 405 ")
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    "head",
    [
        _CHAT + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        _CHAT + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
        _CHAT + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
        _CHAT + b"Content-Length: 5, 5\r\n\r\n",
        _CHAT + b"Content-Length: +5\r\n\r\n",
        _CHAT + b"Content-Length : 5\r\n\r\n",
        _CHAT + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
        _CHAT + b"Transfer-Encoding: xchunked\r\n\r\n",
        _FILES + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        _FILES + b"Transfer-Encoding: gzip\r\n\r\n",
        _CHAT + b"A: b\r\n Content-Length: 5\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\nHost: g\n\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
        b"CONNECT g:80 HTTP/1.1\r\nHost: g\r\n\r\n",
        b"nonsense\r\n\r\n",
    ],
)
async def test_request_whose_end_is_in_doubt_is_refused_and_the_connection_closed(
    gateway: Gateway, engine: ScriptedEngine, head: bytes
) -> None:
    smuggled = b"0\r\n\r\n" + gateway.request(BODY)
    answer = await gateway.raw(head + smuggled)

    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 405 "))
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"connection: close\r\n" in answer
    assert engine.received == []


@pytest.mark.parametrize("gateway_options", [{"max_body_bytes": 1000}])
async def test_body_over_the_limit_is_refused_before_it_is_sent(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    reader, writer = await gateway.connect()
    writer.write(_CHAT + b"Expect: 100-continue\r\nContent-Length: 1001\r\n\r\n")
    status, headers, body = await read_answer(reader)

    assert (status, headers["connection"], code_of(body)) == (413, "close", "request_too_large")
    writer.close()


@pytest.mark.parametrize("gateway_options", [{"max_body_bytes": 1000}])
async def test_chunked_body_over_the_limit_is_refused_though_the_client_goes_on_sending(
    gateway: Gateway,
) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: chunked\r\n\r\n"
    reader, writer = await gateway.connect()
    writer.write(head + b"400\r\n" + b"x" * 1024 + b"\r\n")
    writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
    status, _, body = await read_answer(reader)

    assert (status, code_of(body)) == (413, "request_too_large")
    writer.close()


@pytest.mark.parametrize("gateway_options", [{"max_header_bytes": 2000}])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models"])
async def test_head_over_the_limit_is_refused(gateway: Gateway, path: str) -> None:
    complete = f"POST {path} HTTP/1.1\r\nHost: g\r\nX: {'x' * 3000}\r\n\r\n".encode()
    assert (await gateway.raw(complete)).startswith(b"HTTP/1.1 431 ")

    reader, writer = await gateway.connect()
    writer.write(f"POST {path} HTTP/1.1\r\nHost: g\r\nX: ".encode())
    await asyncio.sleep(0)
    for _ in range(100):
        writer.write(b"x" * 1000)
        await writer.drain()
        await asyncio.sleep(0)
    assert (await read_answer(reader))[0] == 431
    writer.close()


@pytest.mark.parametrize(
    "gateway_options", [{"timeouts": {"request_arrival_seconds": 0.3, "idle_seconds": 0.4}}]
)
async def test_slow_request_gets_408_and_an_idle_connection_is_closed(gateway: Gateway) -> None:
    slow = await gateway.raw(b"POST /v1/chat/completions HTTP/1.1\r\nHost: g\r\n")
    assert slow.startswith(b"HTTP/1.1 408 ")
    body_missing = await gateway.raw(gateway.request(BODY)[:-5])
    assert body_missing.startswith(b"HTTP/1.1 408 ")
    assert await gateway.raw(b"") == b""


async def test_answer_reaches_a_client_that_has_ended_its_own_side(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    async def script(request: Received, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.3)
        await answer_chat(request, writer)

    engine.script = script
    for stream in (False, True):
        reader, writer = await gateway.connect()
        writer.write(gateway.request({**BODY, "stream": stream}))
        writer.write_eof()
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        assert b"HTTP/1.1 200 OK\r\n" in answer
        assert answer.endswith(b"0\r\n\r\n" if stream else b"}}")


@pytest.mark.parametrize("stream", [False, True])
async def test_client_that_goes_away_ends_the_engines_work(
    gateway: Gateway, engine: ScriptedEngine, stream: bool
) -> None:
    async def script(request: Received, writer: asyncio.StreamWriter) -> None:
        if stream:
            writer.write(STREAM_HEAD + event(chunk_json(BASE, "Hello")))
            for _ in range(1000):
                writer.write(event(chunk_json(BASE, "Hello")))
                await writer.drain()
                await asyncio.sleep(0.01)
        await asyncio.sleep(30)

    engine.script = script
    reader, writer = await gateway.connect()
    writer.write(gateway.request({**BODY, "stream": stream}))
    if stream:
        await reader.readuntil(b"Hello")
    else:
        await eventually(lambda: engine.received)
    writer.close()

    await asyncio.wait_for(engine.disconnected.wait(), 5)
    await eventually(lambda: not gateway.connections)
    assert sum(gateway.plane.upstreams.in_flight.values()) == 0


async def test_slow_reader_stops_the_engine_instead_of_filling_memory(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    sent = 0
    payload = chunk_json(BASE, "x" * 20_000)

    async def script(request: Received, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(STREAM_HEAD)
        for _ in range(2000):
            writer.write(event(payload))
            await writer.drain()
            sent += len(payload)
        writer.write(STREAM_END)

    engine.script = script
    reader, writer = await gateway.connect()
    writer.write(gateway.request({**BODY, "stream": True}))
    await reader.readuntil(b"xxx")
    before = -1
    while before != sent:  # until nothing moves any more
        before = sent
        await asyncio.sleep(0.3)

    assert sent < 15_000_000  # what both kernels and two buffers hold, far from all 40 MB
    buffered = sum(connection.transport.get_write_buffer_size() for connection in gateway.connections)
    assert buffered < 500_000
    status_and_rest = 0
    while chunk := await asyncio.wait_for(reader.read(1 << 20), 10):
        status_and_rest += len(chunk)
        if chunk.endswith(b"0\r\n\r\n"):
            break
    writer.close()
    assert status_and_rest > 2000 * len(payload)


async def test_offer_of_http2_is_ignored_and_the_request_answered(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    reader, writer = await gateway.connect()
    for _ in range(2):
        writer.write(
            gateway.request(
                BODY, "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQ"
            )
        )
        status, _, body = await read_answer(reader)
        assert (status, orjson.loads(body)["object"]) == (200, "chat.completion")
    writer.close()

    assert engine.received[0].json == BODY


async def test_absolute_form_of_the_target_is_taken(gateway: Gateway) -> None:
    request = gateway.request(BODY, "Connection: close").replace(CHAT_PATH, b"http://gateway" + CHAT_PATH, 1)
    assert (await gateway.raw(request)).startswith(b"HTTP/1.1 200 ")


async def test_upload_passes_to_the_control_plane_in_pieces(gateway: Gateway) -> None:
    lines = b"".join(
        orjson.dumps(
            {"messages": [{"role": "user", "content": "x" * 1000}, {"role": "assistant", "content": "y"}]}
        )
        + b"\n"
        for _ in range(2000)
    )
    answer: Any = await gateway.client.post(
        "/v1/files", data={"purpose": "fine-tune"}, files={"file": ("train.jsonl", lines)}
    )

    assert answer.status_code == 200, answer.text
    assert answer.json()["bytes"] == len(lines)


async def test_upload_that_is_refused_early_still_gets_its_answer(gateway: Gateway) -> None:
    head = f"POST /v1/feedback HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {gateway.key}\r\n"
    reader, writer = await gateway.connect()
    writer.write(f"{head}Content-Length: 50000000\r\n\r\n".encode())
    writer.write(b"x" * 300_000)
    status, _, body = await read_answer(reader)
    writer.write(b"x" * 300_000)

    assert (status, code_of(body)) == (413, "request_too_large")
    writer.close()
