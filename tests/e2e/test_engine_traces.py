"""A request's trace goes on inside the engine: W3C context in, OTLP spans out."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.e2e.conftest import ENGINE_KEY, StartEngine

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"


class Collector:
    """An OTLP/HTTP receiver on a thread of its own; keeps (trace id, parent span id) of each span."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, str]] = []
        self.has_spans = threading.Event()
        collector = self

        class Receiver(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.receive(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Nothing: the test says what went wrong."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def receive(self, request: ExportTraceServiceRequest) -> None:
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.spans += [(span.trace_id.hex(), span.parent_span_id.hex()) for span in scope.spans]
        if any(trace_id == TRACE_ID for trace_id, _ in self.spans):
            self.has_spans.set()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    receiving = Collector()
    try:
        yield receiving
    finally:
        receiving.close()


async def test_vllm_continues_the_trace_that_a_request_brings(
    start_engine: StartEngine, two_layer_model: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
    engine = await start_engine("vllm", model_path=two_layer_model)

    async with httpx.AsyncClient(base_url=engine.url, timeout=60) as client:
        answer = await client.post(
            "/v1/chat/completions",
            headers={
                "authorization": f"Bearer {ENGINE_KEY}",
                "traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01",
            },
            json={
                "model": engine.spec.base_model,
                "messages": [{"role": "user", "content": "Hello"}],
                "max_tokens": 2,
            },
        )
    answer.raise_for_status()

    assert await asyncio.to_thread(collector.has_spans.wait, 30), f"only {collector.spans}"
    assert (TRACE_ID, PARENT_ID) in collector.spans
    await engine.stop()
