"""Trace ids, spans on a real OTLP endpoint, and log lines without secrets."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from gateway.record import RequestRecord
from gateway.spans import Spans
from loraway.ids import ProjectId, ReplicaId, VersionId
from loraway.settings import TelemetrySettings
from loraway.telemetry import LineFormatter, begin_trace, redact
from tests.otlp_collector import Collector, attributes_of, running_collector

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with running_collector() as running:
        yield running


def finished(**fields: Any) -> RequestRecord:
    values: dict[str, Any] = {
        "request_id": "req_1",
        "path": "/v1/chat/completions",
        "started_at": 1_700_000_000.0,
        "started": 10.0,
        "first_byte": 10.25,
        "ended": 12.0,
        "project_id": ProjectId("proj_1"),
        "model": "codename",
        "target_name": "codename@2",
        "base_model": "smollm2-135m",
        "version_id": VersionId("version-2"),
        "adapter_rank": 16,
        "replica_id": ReplicaId("replica-1"),
        "engine": "vllm",
        "is_stream": True,
        "status": 200,
        "completion_id": "chatcmpl-1",
        "request_body": b'{"messages":[{"content":"a secret question"}]}',
        "response_parts": [b"a secret answer"],
        "prompt_tokens": 12,
        "completion_tokens": 5,
        "trace_id": TRACE,
        "span_id": "a" * 16,
        "parent_span_id": PARENT,
        "is_sampled": True,
    }
    return RequestRecord(**{**values, **fields})


async def send(settings: TelemetrySettings, *records: RequestRecord) -> None:
    spans = Spans(settings)
    spans.start()
    for record in records:
        spans.on_end(record)
    await spans.stop()


async def test_a_finished_request_is_one_span_with_genai_and_adapter_attributes(collector: Collector) -> None:
    await send(TelemetrySettings(otlp_endpoint=collector.url), finished())

    (span,) = collector.spans
    assert span.name == "chat codename"
    assert span.kind == Span.SPAN_KIND_SERVER
    assert (span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex()) == (TRACE, "a" * 16, PARENT)
    assert span.end_time_unix_nano - span.start_time_unix_nano == 2_000_000_000
    assert attributes_of(span) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": "codename",
        "gen_ai.request.stream": True,
        "gen_ai.response.id": "chatcmpl-1",
        "gen_ai.response.model": "codename@2",
        "gen_ai.response.time_to_first_chunk": 0.25,
        "gen_ai.usage.input_tokens": 12,
        "gen_ai.usage.output_tokens": 5,
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "url.path": "/v1/chat/completions",
        "loraway.request.id": "req_1",
        "loraway.project.id": "proj_1",
        "loraway.base_model": "smollm2-135m",
        "loraway.replica.id": "replica-1",
        "loraway.adapter.name": "codename",
        "loraway.adapter.version": 2,
        "loraway.adapter.version_id": "version-2",
        "loraway.adapter.rank": 16,
    }


async def test_spans_hold_no_prompts_and_no_answers(collector: Collector) -> None:
    await send(TelemetrySettings(otlp_endpoint=collector.url), finished())

    assert b"secret" not in b"".join(request.SerializeToString() for request in collector.requests)


async def test_only_the_servers_faults_are_errors(collector: Collector) -> None:
    await send(
        TelemetrySettings(otlp_endpoint=collector.url),
        finished(status=503, error_code="no_replica_ready"),
        finished(status=404, error_code="model_not_found", target_name="", model="made-up"),
    )

    broken, unknown = collector.spans
    assert broken.status.code == Status.STATUS_CODE_ERROR
    assert attributes_of(broken)["error.type"] == "no_replica_ready"
    assert unknown.status.code == Status.STATUS_CODE_UNSET
    assert unknown.name == "chat"  # a name that a client made up would make a span name of its own


async def test_what_is_not_sampled_is_not_sent(collector: Collector) -> None:
    await send(TelemetrySettings(otlp_endpoint=collector.url), finished(is_sampled=False))

    assert collector.spans == []


async def test_the_standard_variable_names_the_endpoint(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "front-door")

    await send(TelemetrySettings(), finished())

    resource = collector.requests[0].resource_spans[0].resource
    named = {pair.key: pair.value.string_value for pair in resource.attributes}
    assert len(collector.spans) == 1
    assert named["service.name"] == "front-door"


async def test_an_endpoint_that_is_away_costs_the_gateway_nothing() -> None:
    spans = Spans(TelemetrySettings(otlp_endpoint="http://127.0.0.1:1"))
    spans.start()
    spans.on_end(finished())

    await spans.stop()  # ends although nothing could be sent


def test_without_an_endpoint_nothing_is_sampled() -> None:
    spans = Spans(TelemetrySettings())
    spans.start()

    assert not spans.begin(None).is_sampled


def test_a_clients_trace_is_joined() -> None:
    context = begin_trace(f"00-{TRACE}-{PARENT}-01".encode(), sample_ratio=0.0)

    assert (context.trace_id, context.parent_span_id, context.is_sampled) == (TRACE, PARENT, True)
    assert context.span_id != PARENT
    assert context.traceparent == f"00-{TRACE}-{context.span_id}-01"


def test_a_client_that_does_not_sample_is_followed() -> None:
    assert not begin_trace(f"00-{TRACE}-{PARENT}-00".encode(), sample_ratio=1.0).is_sampled


@pytest.mark.parametrize(
    "header",
    [
        None,
        b"",
        b"nonsense",
        f"00-{'0' * 32}-{PARENT}-01".encode(),
        f"00-{TRACE}-{'0' * 16}-01".encode(),
        f"ff-{TRACE}-{PARENT}-01".encode(),
        f"00-{TRACE.upper()}-{PARENT}-01".encode(),
        f"00-{TRACE}-{PARENT}-01\r\nx: y".encode(),
    ],
)
def test_no_or_a_bad_traceparent_starts_a_new_trace(header: bytes | None) -> None:
    context = begin_trace(header, sample_ratio=1.0)

    assert context.trace_id != TRACE
    assert (len(context.trace_id), len(context.span_id)) == (32, 16)
    assert context.parent_span_id == ""
    assert context.is_sampled


def test_the_ratio_decides_how_many_traces_are_sampled() -> None:
    sampled = sum(begin_trace(None, 0.25).is_sampled for _ in range(4000))

    assert 800 < sampled < 1200


@pytest.mark.parametrize(
    ("line", "hidden"),
    [
        ("Authorization: Bearer sk-abcdefghijkl", "sk-abcdefghijkl"),
        ("key sk-loraway-0123456789abcdef was used", "0123456789abcdef"),
        ("postgresql://loraway:hunter22@db/loraway", "hunter22"),
        ("api_key=abcdef123 and more", "abcdef123"),
        ("password: hunter22, next", "hunter22"),
    ],
)
def test_secrets_are_struck_out(line: str, hidden: str) -> None:
    assert hidden not in redact(line)
    assert "[hidden]" in redact(line)


def test_a_log_line_says_when_who_and_what() -> None:
    log = logging.LogRecord("gateway.traffic", logging.WARNING, "f", 1, "stored %d", (3,), None)
    log.created, log.msecs = 1_700_000_000.0, 42.0
    log.model = "codename"

    line = LineFormatter("gateway").format(log)

    assert line.startswith(
        f"2023-11-14T22:13:20.042Z WARNING gateway[{log.process}] gateway.traffic: stored 3"
    )
    assert line.endswith(" model='codename'")


def test_a_traceback_is_shown_without_secrets() -> None:
    try:
        raise ValueError("Bearer sk-abcdefghijkl refused")
    except ValueError:
        log = logging.LogRecord("x", logging.ERROR, "f", 1, "failed", (), sys.exc_info())

    text = LineFormatter("gateway").format(log)

    assert "ValueError" in text
    assert "sk-abcdefghijkl" not in text
