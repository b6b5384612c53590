"""Logged and traced by the real gateway: what a client was answered is there, even after a SIGKILL."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from sqlalchemy import select

from loadtest.running import eventually
from loraway.schema import completion_metadata, completions
from tests.otlp_collector import attributes_of, running_collector
from tests.stack import BASE, Stack, running_simulators, running_stack

CLIENTS = 16
KILL_AFTER = 200


def body(**fields: Any) -> dict[str, Any]:
    return {"model": BASE, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, **fields}


class Storing:
    """Clients that store one completion after the other until the gateway is gone."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._enough = asyncio.Event()
        #: Ids of the completions whose last byte arrived.
        self.answered: set[str] = set()

    async def run_until_killed(self) -> None:
        """Kill the gateway in the middle of it."""
        clients = [asyncio.create_task(self._client(number)) for number in range(CLIENTS)]
        async with asyncio.timeout(60):
            await self._enough.wait()
        self._stack.processes["gateway"].kill()
        await asyncio.gather(*clients)

    async def _client(self, number: int) -> None:
        headers = {"authorization": f"Bearer {self._stack.api_key}"}
        async with httpx.AsyncClient(base_url=self._stack.url, headers=headers, timeout=20) as client:
            try:
                while True:
                    await self._ask(client, stream=number % 2 == 0)
            except httpx.TransportError:
                return  # the gateway is gone

    async def _ask(self, client: httpx.AsyncClient, *, stream: bool) -> None:
        answer = await client.post("/v1/chat/completions", json=body(store=True, stream=stream))
        assert answer.status_code == 200
        assert not stream or answer.text.rstrip().endswith("data: [DONE]")
        self.answered.add(answer.headers["x-loraway-completion-id"])
        if len(self.answered) >= KILL_AFTER:
            self._enough.set()


async def test_every_answered_completion_survives_sigkill_of_the_gateway(tmp_path: Path) -> None:
    with running_simulators("vllm") as engines, running_stack(tmp_path, engines) as stack:
        storing = Storing(stack)
        await storing.run_until_killed()

        with stack.database.read() as connection:
            stored = set(connection.execute(select(completions.c.id)).scalars())
        assert len(storing.answered) >= KILL_AFTER
        assert storing.answered <= stored


@pytest.mark.parametrize("stream", [False, True])
def test_a_stored_completion_holds_what_the_client_was_answered(tmp_path: Path, stream: bool) -> None:
    with running_simulators("vllm") as engines, running_stack(tmp_path, engines) as stack:
        answer = httpx.post(
            f"{stack.url}/v1/chat/completions",
            headers={"authorization": f"Bearer {stack.api_key}"},
            json=body(store=True, stream=stream, metadata={"topic": "codename"}),
        )

        with stack.database.read() as connection:
            row = connection.execute(select(completions)).mappings().one()
            pair = connection.execute(select(completion_metadata)).mappings().one()
        stored = orjson.loads(row["response"])["choices"][0]["message"]["content"]
        assert answer.headers["x-loraway-completion-id"] == row["id"]
        assert row["request_id"] == answer.headers["x-request-id"]
        assert stored == text_of(answer, stream=stream)
        assert stored
        assert (pair["key"], pair["value"]) == ("topic", "codename")
        assert 0 < row["ttft_seconds"] <= row["duration_seconds"]


def text_of(answer: httpx.Response, *, stream: bool) -> str:
    if not stream:
        return str(answer.json()["choices"][0]["message"]["content"])
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: {")]
    deltas = [choice["delta"] for event in events for choice in orjson.loads(event)["choices"]]
    return "".join(delta.get("content") or "" for delta in deltas)


def test_each_request_is_one_span_in_the_clients_trace(tmp_path: Path) -> None:
    trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    with running_collector() as collector, running_simulators("vllm") as engines:
        environment = {"LORAWAY_TELEMETRY__OTLP_ENDPOINT": collector.url}
        with running_stack(tmp_path, engines, environment=environment) as stack:
            headers = {"authorization": f"Bearer {stack.api_key}", "traceparent": f"00-{trace}-{parent}-01"}
            url = f"{stack.url}/v1/chat/completions"
            answer = httpx.post(url, headers=headers, json=body(stream=True))
            # The gateway sends what it has when it stops.

        (span,) = collector.spans
        attributes = attributes_of(span)
        assert (span.trace_id.hex(), span.parent_span_id.hex()) == (trace, parent)
        assert attributes["gen_ai.request.model"] == BASE
        assert attributes["gen_ai.provider.name"] == "vllm"
        assert attributes["gen_ai.request.stream"] is True
        assert attributes["gen_ai.response.time_to_first_chunk"] > 0
        assert attributes["loraway.request.id"] == answer.headers["x-request-id"]
        assert "Hi" not in str(attributes)


def test_a_scrape_shows_requests_of_every_worker(tmp_path: Path) -> None:
    with running_simulators("vllm") as engines, running_stack(tmp_path, engines, workers=2) as stack:
        headers = {"authorization": f"Bearer {stack.api_key}"}
        for _ in range(20):  # each on a connection of its own, so that both workers get some
            url = f"{stack.url}/v1/chat/completions"
            httpx.post(url, headers=headers, json=body()).raise_for_status()

        eventually_all_are_counted(stack, 20)


def eventually_all_are_counted(stack: Stack, count: int) -> None:
    def counted() -> bool:
        lines = httpx.get(f"{stack.url}/metrics").text.splitlines()
        requests = [line for line in lines if line.startswith("loraway_requests_total{")]
        return sum(float(line.rsplit(" ", 1)[1]) for line in requests) == count

    eventually(counted, within_seconds=20, what="a scrape counts every request")
