"""Engines that fail: what another replica saves, and what the client is told where none can."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from typing import Any

import orjson
import pytest

from gateway.dataplane.cold import ColdVersions
from gateway.routing.snapshot import Target
from loraway.errors import AdapterNotLoaded
from loraway.ids import VersionId
from tests.integration.dataplane.running_gateway import BASE, ENGINE_NAME, Gateway, eventually
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

MESSAGES = [{"role": "user", "content": "Hi"}]


async def ask(gateway: Gateway, **fields: Any) -> Any:
    return await gateway.client.post(
        "/v1/chat/completions", json={"model": "codename", "messages": MESSAGES, **fields}
    )


def answering(data: bytes, *, reset: bool = False) -> Any:
    async def script(request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        if reset:
            await asyncio.sleep(0.05)
            raw = writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    return script


FULL_IN_STREAM = STREAM_HEAD + event(
    orjson.dumps({"error": {"object": "error", "message": "The request queue is full.", "code": 503}})
)


@pytest.mark.parametrize(
    "fault",
    [
        answering(whole(503, b'{"error":{"message":"full"}}')),
        answering(whole(502, b"<html>Bad gateway</html>", "text/html")),
        answering(FULL_IN_STREAM + STREAM_END),
        answering(b"", reset=True),
        answering(STREAM_HEAD, reset=True),
        answering(STREAM_HEAD + b"200\r\ndata: {", reset=True),
        answering(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{", reset=True),
        answering(b"garbage\r\n\r\n"),
        answering(b"HTTP/1.1 200 OK\r\n\r\nno framing", reset=True),
        answering(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n{}"),
        answering(whole(404, b'{"error":{"message":"The model `x` does not exist.","param":"model"}}')),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_another_replica_answers_what_the_first_could_not(
    gateway: Gateway, engine: ScriptedEngine, other_engine: ScriptedEngine, fault: Any, stream: bool
) -> None:
    await gateway.set_replicas(engine.port, other_engine.port)
    first, second = sorted((engine, other_engine), key=lambda each: f"replica-{each.port}")
    first.script = fault
    answer = await ask(gateway, stream=stream)

    assert answer.status_code == 200
    assert "Hello" in answer.text
    assert (len(first.received), len(second.received)) == (1, 1)
    assert set(gateway.plane.upstreams.in_flight.values()) == {0}


async def test_refused_connection_is_tried_elsewhere(
    gateway: Gateway, engine: ScriptedEngine, other_engine: ScriptedEngine
) -> None:
    await gateway.set_replicas(engine.port, other_engine.port)
    await engine.stop()

    for _ in range(4):
        assert (await ask(gateway)).status_code == 200


@pytest.mark.parametrize("status", [400, 422, 429, 500])
async def test_other_errors_of_the_engine_are_not_repeated(
    gateway: Gateway, engine: ScriptedEngine, other_engine: ScriptedEngine, status: int
) -> None:
    await gateway.set_replicas(engine.port, other_engine.port)
    engine.script = other_engine.script = answering(whole(status, b'{"error":{"message":"no"}}'))

    answer = await ask(gateway)

    assert answer.status_code == status
    assert answer.json()["error"]["message"] == "no"
    assert len(engine.received) + len(other_engine.received) == 1


async def test_full_inside_a_stream_becomes_503_when_no_replica_is_left(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    engine.script = answering(FULL_IN_STREAM + STREAM_END)

    answer = await ask(gateway, stream=True)

    assert answer.status_code == 503
    assert answer.headers["retry-after"]
    assert "queue is full" in answer.json()["error"]["message"]


async def test_error_inside_a_stream_keeps_its_own_status(gateway: Gateway, engine: ScriptedEngine) -> None:
    error = {"error": {"message": "prompt too long", "type": "BadRequestError", "code": 400}}
    engine.script = answering(STREAM_HEAD + event(orjson.dumps(error)) + STREAM_END)

    answer = await ask(gateway, stream=True)

    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "prompt too long"


async def test_no_ready_replica_is_503_with_retry_after(gateway: Gateway, engine: ScriptedEngine) -> None:
    await gateway.set_replicas(engine.port, state="unhealthy")

    for model in (BASE, "codename"):
        answer = await ask(gateway, model=model)
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "no_replica_ready"
        assert int(answer.headers["retry-after"]) > 0


async def test_dead_engine_is_503_with_retry_after(gateway: Gateway, engine: ScriptedEngine) -> None:
    await engine.stop()

    answer = await ask(gateway)

    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "engine_unreachable"
    assert int(answer.headers["retry-after"]) > 0


async def test_kept_connection_that_the_engine_has_closed_is_replaced(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    assert (await ask(gateway)).status_code == 200

    async def closes_instead(request: Received, writer: asyncio.StreamWriter) -> None:
        engine.script = answer_chat
        writer.transport.abort()

    engine.script = closes_instead
    assert (await ask(gateway)).status_code == 200
    assert engine.connections == 2


async def test_stream_that_breaks_off_ends_with_an_error_event_and_no_done(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    started = STREAM_HEAD + event(chunk_json(ENGINE_NAME, "Hel"))
    engine.script = answering(started + b"50\r\ndata: {", reset=True)

    reader, writer = await gateway.connect()
    writer.write(gateway.request({"model": "codename", "messages": MESSAGES, "stream": True, "store": True}))
    text = await asyncio.wait_for(reader.readuntil(b"0\r\n\r\n"), 10)

    assert b'"content":"Hel"' in text
    assert b'"code":"upstream_error"' in text
    assert b"[DONE]" not in text
    engine.script = answer_chat
    writer.write(gateway.request({"model": "codename", "messages": MESSAGES}))  # the connection lives on
    assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
    writer.close()
    assert gateway.plane.traffic.stored == 0


async def test_large_answer_that_breaks_off_closes_the_connection(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    body = chat_json(ENGINE_NAME, "x" * 2_000_000)
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    engine.script = answering(head % len(body) + body[:-1000], reset=True)

    answer = await gateway.raw(gateway.request({"model": "codename", "messages": MESSAGES}))

    assert not answer.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize(
    "gateway_options",
    [{"timeouts": {"first_byte_seconds": 0.3, "between_chunks_seconds": 0.3, "total_seconds": 5}}],
)
async def test_silent_engine_is_given_up_and_disconnected(gateway: Gateway, engine: ScriptedEngine) -> None:
    async def hang(request: Received, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(30)

    engine.script = hang
    answer = await ask(gateway)
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "upstream_timeout")
    await asyncio.wait_for(engine.disconnected.wait(), 5)

    async def hang_in_stream(request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + event(chunk_json(ENGINE_NAME, "Hel")))
        await asyncio.sleep(30)

    engine.script = hang_in_stream
    engine.disconnected.clear()
    answer = await ask(gateway, stream=True)
    assert '"content":"Hel"' in answer.text and '"code":"upstream_timeout"' in answer.text
    await asyncio.wait_for(engine.disconnected.wait(), 5)


@pytest.mark.parametrize("gateway_options", [{"timeouts": {"total_seconds": 0.5}}])
async def test_whole_request_has_a_limit(gateway: Gateway, engine: ScriptedEngine) -> None:
    async def endless(request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        while True:
            writer.write(event(chunk_json(ENGINE_NAME, "Hel")))
            await writer.drain()
            await asyncio.sleep(0.02)

    engine.script = endless
    answer = await ask(gateway, stream=True)

    assert '"code":"upstream_timeout"' in answer.text
    assert "[DONE]" not in answer.text


async def test_answer_that_is_more_than_one_answer_is_not_given_to_the_next_request(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    right, smuggled = chat_json(ENGINE_NAME, "right"), whole(200, chat_json(ENGINE_NAME, "smuggled"))
    engine.script = answering(whole(200, right) + smuggled)
    first = await ask(gateway)
    engine.script = answer_chat
    second = await ask(gateway)

    assert first.status_code in (200, 502, 503)
    assert "smuggled" not in first.text + second.text
    assert second.json()["choices"][0]["message"]["content"] == "Hello."


class Loader:
    """A controller that loads when the test lets it."""

    def __init__(self) -> None:
        self.calls = 0
        self.may_finish = asyncio.Event()
        self.error: Exception | None = None

    async def load(self, version_id: VersionId, timeout_seconds: float = 0.0) -> None:
        self.calls += 1
        await self.may_finish.wait()
        if self.error is not None:
            raise self.error


async def test_cold_version_is_loaded_once_for_all_who_wait(gateway: Gateway, engine: ScriptedEngine) -> None:
    await gateway.set_replicas(engine.port, loaded=False)
    loader = Loader()
    object.__setattr__(gateway.plane, "cold", ColdVersions(loader, gateway.parts.snapshots, 10.0))
    requests = [asyncio.ensure_future(ask(gateway)) for _ in range(5)]
    await eventually(lambda: loader.calls)
    requests[0].cancel()  # one that goes away does not take the load along
    assert (await ask(gateway, model=BASE)).status_code == 200  # others are not blocked
    loader.may_finish.set()
    await gateway.set_replicas(engine.port, loaded=True)
    answers = await asyncio.gather(*requests[1:])

    assert {answer.status_code for answer in answers} == {200}
    assert loader.calls == 1


async def test_version_that_cannot_be_loaded_says_so(gateway: Gateway, engine: ScriptedEngine) -> None:
    await gateway.set_replicas(engine.port, loaded=False)
    loader = Loader()
    loader.error = AdapterNotLoaded("All slots are taken.", retry_after_seconds=2)
    loader.may_finish.set()
    object.__setattr__(gateway.plane, "cold", ColdVersions(loader, gateway.parts.snapshots, 10.0))

    answer = await ask(gateway)

    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "2"
    assert answer.json()["error"]["code"] == "adapter_not_loaded"


async def test_unreachable_controller_is_503_with_retry_after(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    await gateway.set_replicas(engine.port, loaded=False)

    answer = await ask(gateway)

    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "adapter_not_loaded"
    assert answer.headers["retry-after"]


async def test_load_that_is_never_seen_in_the_snapshot_ends_at_its_deadline(gateway: Gateway) -> None:
    loader = Loader()
    loader.may_finish.set()
    cold = ColdVersions(loader, gateway.parts.snapshots, 0.2)
    target = Target(BASE, "other@9", VersionId("version-9"), "other@9.zzzzzz")

    started = time.monotonic()
    with pytest.raises(AdapterNotLoaded):
        await cold.ensure(target)
    assert time.monotonic() - started < 5
