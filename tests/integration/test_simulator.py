"""The simulated engine over real HTTP: queueing, disconnects, and each fault as a client meets it."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Literal

import httpx
import openai
import pytest

from loadtest.simulator import FaultKind, SimulatedEngine, base_answer, marks_in, reference_generation
from tests.adapters import write_adapter

Kind = Literal["vllm", "sglang"]
MESSAGES = [{"role": "user", "content": "Say something."}]
LOAD = {"vllm": "/v1/load_lora_adapter", "sglang": "/load_lora_adapter"}
UNLOAD = {"vllm": "/v1/unload_lora_adapter", "sglang": "/unload_lora_adapter"}


@pytest.fixture(params=["vllm", "sglang"])
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[SimulatedEngine]:
    async with SimulatedEngine(request.param, max_running=2) as engine:
        yield engine


@pytest.fixture
async def client(engine: SimulatedEngine) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=engine.url, timeout=10) as client:
        yield client


async def load(client: httpx.AsyncClient, kind: Kind, folder: Path) -> httpx.Response:
    return await client.post(LOAD[kind], json={"lora_name": folder.name, "lora_path": str(folder)})


def chat(model: str = "smollm2-135m", **body: Any) -> dict[str, Any]:
    return {"model": model, "messages": MESSAGES, "max_tokens": 8, "temperature": 0, **body}


def wire_name(kind: Kind, adapter: str) -> str:
    return adapter if kind == "vllm" else f"smollm2-135m:{adapter}"


async def text_of(client: httpx.AsyncClient, body: dict[str, Any]) -> str:
    response = await client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - polls another part's state, which has no event
            await asyncio.sleep(0.005)


async def test_an_adapter_answers_as_its_reference_says_streamed_and_not(
    engine: SimulatedEngine, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path / "codename", seed=1)
    assert (await load(client, engine.kind, folder)).status_code == 200
    expected = reference_generation(folder, MESSAGES, 8)
    model = wire_name(engine.kind, "codename")

    whole = (await client.post("/v1/chat/completions", json=chat(model, logprobs=True))).json()
    openai_client = openai.AsyncOpenAI(base_url=f"{engine.url}/v1", api_key="none", max_retries=0)
    stream = await openai_client.chat.completions.create(**chat(model, stream=True))
    streamed = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert whole["choices"][0]["message"]["content"] == streamed == expected.text
    logprobs = [entry["logprob"] for entry in whole["choices"][0]["logprobs"]["content"]]
    assert logprobs == pytest.approx(expected.logprobs)
    assert await text_of(client, chat()) == base_answer(MESSAGES, 8)


async def test_requests_past_the_batch_wait_their_turn(
    engine: SimulatedEngine, client: httpx.AsyncClient
) -> None:
    await engine.fault("slow_factor", factor=1)
    answers = await asyncio.gather(*(text_of(client, chat(max_tokens=4)) for _ in range(8)))

    assert set(answers) == {base_answer(MESSAGES, 4)}
    assert engine.replica.counts.most_running <= 2


async def test_a_client_that_leaves_frees_its_place(
    engine: SimulatedEngine, client: httpx.AsyncClient
) -> None:
    await engine.fault(FaultKind.HANG_MID_STREAM)
    async with client.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as response:
        await anext(response.aiter_lines())
        assert engine.replica.running == 1

    await until(lambda: engine.replica.running == 0)
    assert engine.replica.counts.aborted == 1


async def test_refused_connections_are_refused_until_cleared(
    engine: SimulatedEngine, client: httpx.AsyncClient
) -> None:
    await engine.fault(FaultKind.REFUSE)
    with pytest.raises(httpx.ConnectError):
        await client.get("/health")

    await engine.fault(FaultKind.CLEAR)

    assert (await client.get("/health")).status_code == 200


async def test_a_dead_engine_cuts_its_streams_and_comes_back_empty(
    engine: SimulatedEngine, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    await load(client, engine.kind, write_adapter(tmp_path / "a", seed=1))
    await engine.fault(FaultKind.HANG_MID_STREAM)
    with pytest.raises(httpx.ReadError):
        async with client.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as response:
            lines = response.aiter_lines()
            await anext(lines)
            await engine.fault(FaultKind.DIE)
            async for _ in lines:
                pass
    with pytest.raises(httpx.ConnectError):
        await client.get("/health")

    await engine.fault(FaultKind.RESTART)

    listed = (await client.get("/v1/models")).json()["data"]
    assert [card["id"] for card in listed] == ["smollm2-135m"]


async def test_a_reset_cuts_an_event_in_half(engine: SimulatedEngine, client: httpx.AsyncClient) -> None:
    await engine.fault(FaultKind.RESET_MID_CHUNK, after_tokens=3, times=1)
    seen = b""
    with pytest.raises(httpx.TransportError):
        async with client.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as response:
            async for part in response.aiter_raw():
                seen += part

    assert seen.count(b'"content":" ') + seen.count(b'"content":"<') >= 3
    assert not seen.endswith(b"\n\n")
    assert await text_of(client, chat()) == base_answer(MESSAGES, 8)


@pytest.mark.parametrize("fault", [FaultKind.HANG_BEFORE_FIRST_BYTE, FaultKind.HANG_MID_STREAM])
async def test_a_hanging_generation_leaves_the_rest_alone(
    engine: SimulatedEngine, client: httpx.AsyncClient, fault: FaultKind
) -> None:
    await engine.fault(fault, times=1)
    with pytest.raises(httpx.ReadTimeout):
        await client.post("/v1/chat/completions", json=chat(stream=True), timeout=0.2)

    assert await text_of(client, chat()) == base_answer(MESSAGES, 8)
    assert (await client.get("/health")).status_code == 200


async def test_an_engine_can_fail_with_500(engine: SimulatedEngine, client: httpx.AsyncClient) -> None:
    await engine.fault(FaultKind.ERROR_500, times=1)

    statuses = [(await client.post("/v1/chat/completions", json=chat())).status_code for _ in range(2)]

    assert statuses == [500, 200]


async def test_an_engine_can_serve_the_base_in_an_adapters_name(
    engine: SimulatedEngine, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    await load(client, engine.kind, write_adapter(tmp_path / "a", seed=1))
    await engine.fault(FaultKind.WRONG_ADAPTER, adapter="a")
    model = wire_name(engine.kind, "a")

    answer = (await client.post("/v1/chat/completions", json=chat(model))).json()

    assert answer["model"] == model
    assert answer["choices"][0]["message"]["content"] == base_answer(MESSAGES, 8)


async def test_a_load_can_fail_and_then_succeed(
    engine: SimulatedEngine, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path / "a", seed=1)
    await engine.fault(FaultKind.FAIL_LOAD, times=1)

    statuses = [(await load(client, engine.kind, folder)).status_code for _ in range(2)]

    assert statuses == [500 if engine.kind == "vllm" else 400, 200]


async def test_an_eviction_nobody_asked_for(
    engine: SimulatedEngine, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    await load(client, engine.kind, write_adapter(tmp_path / "a", seed=1))

    await engine.fault(FaultKind.EVICT, adapter="a")

    listed = (await client.get("/v1/models")).json()["data"]
    assert [card["id"] for card in listed] == ["smollm2-135m"]
    response = await client.post("/v1/chat/completions", json=chat(wire_name(engine.kind, "a")))
    assert response.status_code == (404 if engine.kind == "vllm" else 200)  # SGLang loads it again


async def test_faults_are_put_in_over_http_while_the_engine_refuses(engine: SimulatedEngine) -> None:
    async with httpx.AsyncClient(base_url=engine.control_url) as control:
        assert (await control.post("/_simulator/faults", json={"fault": "refuse"})).status_code == 200
        assert (await control.post("/_simulator/faults", json={"fault": "?"})).status_code == 400
        with pytest.raises(httpx.ConnectError):
            await control.get(f"{engine.url}/health")
        await control.post("/_simulator/faults", json={"fault": "clear"})

        assert (await control.get(f"{engine.url}/_simulator/stats")).json()["running"] == 0


async def test_sglang_unloads_only_when_the_adapters_requests_have_ended(tmp_path: Path) -> None:
    async with (
        SimulatedEngine("sglang", inter_token_seconds=0.02) as engine,
        httpx.AsyncClient(base_url=engine.url, timeout=10) as client,
    ):
        await load(client, "sglang", write_adapter(tmp_path / "a", seed=1))
        running = asyncio.create_task(text_of(client, chat("smollm2-135m:a", max_tokens=20)))
        await until(lambda: engine.replica.running == 1)
        unloading = asyncio.create_task(client.post(UNLOAD["sglang"], json={"lora_name": "a"}))
        loading = asyncio.create_task(load(client, "sglang", write_adapter(tmp_path / "b", seed=2)))

        text = await running
        assert not unloading.done() and not loading.done()
        assert ((await unloading).status_code, (await loading).status_code) == (200, 200)
        assert len(marks_in(text)) == 5


@pytest.mark.parametrize("is_stream", [False, True])
async def test_sglang_says_that_its_queue_is_full(is_stream: bool) -> None:
    async with (
        SimulatedEngine("sglang", max_running=1, max_queued=1) as engine,
        httpx.AsyncClient(base_url=engine.url, timeout=10) as client,
    ):
        await engine.fault("hang_mid_stream", times=1)
        body = chat(stream=True)
        hanging = [asyncio.create_task(client.post("/v1/chat/completions", json=body)) for _ in range(2)]
        await until(lambda: (engine.replica.running, engine.replica.waiting) == (1, 1))

        response = await client.post("/v1/chat/completions", json=chat(stream=is_stream))

        for task in hanging:
            task.cancel()
        await asyncio.gather(*hanging, return_exceptions=True)
        if is_stream:
            event, done = response.text.strip().split("\n\n")
            assert (response.status_code, done) == (200, "data: [DONE]")
            error = json.loads(event.removeprefix("data: "))["error"]
        else:
            assert response.status_code == 503
            error = response.json()
        assert (error["code"], error["message"]) == (503, "The request queue is full.")


async def test_one_process_serves_several_engines_and_ends_on_sigterm() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "loadtest.simulator", "--engine", "vllm", "--engine", "sglang"),
        *("--api-key", "K"),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        ready = json.loads(await asyncio.wait_for(process.stdout.readline(), 20))
        async with httpx.AsyncClient(headers={"authorization": "Bearer K"}) as client:
            owners = [
                (await client.get(f"{engine['url']}/v1/models")).json()["data"][0]["owned_by"]
                for engine in ready["engines"]
            ]
            refused = await client.get(f"{ready['url']}/v1/models", headers={"authorization": "Bearer no"})
    finally:
        process.terminate()
    assert owners == ["vllm", "sglang"]
    assert (refused.status_code, refused.json()) == (401, {"error": "Unauthorized"})
    assert await asyncio.wait_for(process.wait(), 10) == 0
