"""What a client gets for its requests, good and bad."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import orjson
import pytest
from sqlalchemy import select

from gateway.dataplane.request import CHAT_PATH, PATHS
from loraway import schema
from tests.integration.dataplane.running_gateway import BASE, ENGINE_NAME, Gateway
from tests.integration.dataplane.scripted_engine import Received, ScriptedEngine, chat_json, whole

MESSAGES = [{"role": "user", "content": "Hi"}]


async def ask(gateway: Gateway, **fields: Any) -> Any:
    return await gateway.client.post(
        "/v1/chat/completions", json={"model": "codename", "messages": MESSAGES, **fields}
    )


async def test_alias_reaches_the_engine_as_the_versions_own_name(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    answer = await ask(gateway, temperature=0.5)

    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"] == "Hello."
    assert answer.headers["x-loraway-model"] == "codename@1"
    assert answer.headers["x-request-id"].startswith("req_")
    sent = engine.received[0]
    assert sent.json == {"model": ENGINE_NAME, "messages": MESSAGES, "temperature": 0.5}
    assert sent.headers["x-request-id"] == answer.headers["x-request-id"]


async def test_clients_headers_and_key_do_not_reach_the_engine(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    await gateway.client.post(
        "/v1/chat/completions?user=1",
        json={"model": BASE, "messages": MESSAGES},
        headers={"cookie": "a=b", "x-secret": "s", "x-request-id": "mine-1"},
    )

    sent = engine.received[0]
    assert sent.line == "POST /v1/chat/completions HTTP/1.1"
    assert set(sent.headers) == {
        "host",
        "authorization",
        "content-type",
        "accept",
        "x-request-id",
        "content-length",
    }
    assert gateway.key not in sent.headers["authorization"]
    assert sent.headers["x-request-id"] == "mine-1"


async def test_stream_arrives_through_the_official_client(gateway: Gateway) -> None:
    client = openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{gateway.port}/v1", api_key=gateway.key)
    stream = await client.chat.completions.create(model="codename", messages=MESSAGES, stream=True)
    words = [chunk.choices[0].delta.content async for chunk in stream]
    await client.close()

    assert words == ["Hello", " world", "."]


@pytest.mark.parametrize(
    ("body", "status", "code", "param", "words"),
    [
        (b"{not json", 400, "invalid_json", None, "line 1, column 2"),
        (b"[]", 400, "invalid_request_error", None, "object"),
        ({"messages": MESSAGES}, 400, "invalid_request_error", "model", "missing"),
        ({"model": 3, "messages": MESSAGES}, 400, "invalid_request_error", "model", "string"),
        ({"model": BASE}, 400, "invalid_request_error", "messages", "missing"),
        ({"model": BASE, "messages": "Hi"}, 400, "invalid_request_error", "messages", "list"),
        ({"model": "codenam", "messages": MESSAGES}, 404, "model_not_found", "model", "'codename'"),
        (
            {"model": BASE, "messages": MESSAGES, "store": "yes"},
            400,
            "invalid_request_error",
            "store",
            "true or false",
        ),
        (
            {"model": BASE, "messages": MESSAGES, "metadata": {"k": 1}},
            400,
            "invalid_request_error",
            "metadata",
            "string",
        ),
        (
            {"model": BASE, "messages": MESSAGES, "lora_path": "other@1.zzzzzz"},
            400,
            "invalid_request_error",
            "lora_path",
            "not taken",
        ),
    ],
)
async def test_bad_request_is_refused_with_the_place_of_the_fault(
    gateway: Gateway,
    engine: ScriptedEngine,
    body: Any,
    status: int,
    code: str,
    param: str | None,
    words: str,
) -> None:
    content = body if isinstance(body, bytes) else orjson.dumps(body)
    answer = await gateway.client.post("/v1/chat/completions", content=content)

    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param)
    assert words in error["message"]
    assert "x-request-id" in answer.headers
    assert engine.received == []


@pytest.mark.parametrize(
    "headers", [{}, {"authorization": "Bearer sk-wrong"}, {"authorization": "Basic eA=="}]
)
async def test_request_without_a_valid_key_gets_401(gateway: Gateway, headers: dict[str, str]) -> None:
    gateway.client.headers.pop("authorization")
    answer = await gateway.client.post(
        "/v1/chat/completions", json={"model": BASE, "messages": MESSAGES}, headers=headers
    )

    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    "path",
    [path.decode() for path in PATHS if path != CHAT_PATH],
)
async def test_other_inference_paths_pass_through_with_the_model_rewritten(
    gateway: Gateway, engine: ScriptedEngine, path: str
) -> None:
    async def script(request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(whole(200, orjson.dumps({"model": request.json["model"], "path": request.line})))

    engine.script = script
    answer = await gateway.client.post(path, json={"input": {"model": "codename"}, "model": "codename"})

    assert answer.json() == {"model": ENGINE_NAME, "path": f"POST {path} HTTP/1.1"}
    assert engine.received[0].json["input"] == {"model": "codename"}


async def test_stored_completion_is_in_the_database_when_its_answer_has_arrived(gateway: Gateway) -> None:
    for stream in (False, True):
        answer = await ask(gateway, store=True, stream=stream, metadata={"topic": "names"})

        completion_id = answer.headers["x-loraway-completion-id"]
        listed = await gateway.client.get(f"/v1/chat/completions/{completion_id}")
        assert listed.status_code == 200, listed.text
        assert listed.json()["metadata"] == {"topic": "names"}
        assert listed.json()["choices"][0]["message"]["content"].startswith("Hello")


async def test_stream_that_is_stored_holds_back_its_last_event_until_it_is_safe(gateway: Gateway) -> None:
    committed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    gateway.plane.traffic.store = lambda record: committed  # type: ignore[method-assign]
    reader, writer = await gateway.connect()
    writer.write(gateway.request({"model": "codename", "messages": MESSAGES, "stream": True, "store": True}))

    await asyncio.wait_for(reader.readuntil(b'"content":"."'), 5)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.readuntil(b"[DONE]"), 0.2)
    committed.set_result(None)
    await asyncio.wait_for(reader.readuntil(b"[DONE]\n\n\r\n0\r\n\r\n"), 5)
    writer.close()


@pytest.mark.parametrize("stream", [False, True])
async def test_client_is_told_when_its_completion_was_not_stored(gateway: Gateway, stream: bool) -> None:
    await gateway.plane.traffic.stop()

    answer = await ask(gateway, store=True, stream=stream)

    assert answer.status_code == 200
    if stream:
        assert ": loraway: this completion was not stored\n\ndata: [DONE]\n\n" in answer.text
    else:
        assert answer.headers["x-loraway-stored"] == "false"
        assert "x-loraway-completion-id" not in answer.headers


async def test_engines_error_reaches_the_client_in_openai_shape_and_is_not_stored(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    async def script(request: Received, writer: asyncio.StreamWriter) -> None:
        body = {
            "object": "error",
            "message": "max_tokens is too large",
            "type": "BadRequestError",
            "code": 400,
        }
        writer.write(whole(400, orjson.dumps(body)))

    engine.script = script
    answer = await ask(gateway, store=True)

    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "max_tokens is too large"
    assert "x-loraway-completion-id" not in answer.headers
    with gateway.parts.database.read() as connection:
        assert connection.execute(select(schema.completions.c.id)).all() == []


async def test_answer_of_another_model_is_refused(gateway: Gateway, engine: ScriptedEngine) -> None:
    async def script(request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(whole(200, chat_json(BASE)))

    engine.script = script
    answer = await ask(gateway)

    assert answer.status_code == 502
    assert answer.json()["error"]["code"] == "engine_mismatch"


async def test_trace_of_the_client_goes_on_in_the_engine(gateway: Gateway, engine: ScriptedEngine) -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    await gateway.client.post(
        "/v1/chat/completions",
        json={"model": BASE, "messages": MESSAGES},
        headers={"traceparent": f"00-{trace_id}-b7ad6b7169203331-01"},
    )

    _, sent_trace, sent_span, flags = engine.received[0].headers["traceparent"].split("-")
    assert (sent_trace, flags) == (trace_id, "01")
    assert sent_span != "b7ad6b7169203331"


async def test_large_answer_passes_through_unchanged(gateway: Gateway, engine: ScriptedEngine) -> None:
    large = chat_json(BASE, "x" * 3_000_000)

    async def script(request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(whole(200, large))
        await writer.drain()

    engine.script = script
    answer = await gateway.client.post("/v1/chat/completions", json={"model": BASE, "messages": MESSAGES})

    assert answer.content == large
