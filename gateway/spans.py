"""Spans of finished requests, built and sent off the hot path.

The exchange draws a request's ids at its start (`begin`) and hands the finished record over (`on_end`); a
thread makes the span, the OpenTelemetry SDK batches and sends it.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from typing import Final

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

import loraway
from gateway.record import RequestRecord
from loraway import semconv
from loraway.settings import TelemetrySettings
from loraway.telemetry import TraceContext, begin_trace, process_resource, span_processor

_LOG = logging.getLogger(__name__)

#: Records waiting to become spans; more are dropped and counted.
QUEUE_LIMIT: Final = 10_000
_FLUSH_MILLISECONDS: Final = 2_000
_SCOPE: Final = InstrumentationScope("loraway.gateway", loraway.__version__)
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)


class Spans:
    """Makes one span of each sampled request. Does nothing where no OTLP endpoint is configured."""

    def __init__(self, settings: TelemetrySettings) -> None:
        self._settings = settings
        self._queue: queue.SimpleQueue[RequestRecord | None] = queue.SimpleQueue()
        self._processor: BatchSpanProcessor | None = None
        self._thread: threading.Thread | None = None
        self._sample_ratio = 0.0
        self.dropped = 0

    def start(self) -> None:
        """Begin to send, if there is somewhere to send to."""
        self._processor = span_processor(self._settings)
        if self._processor is not None:
            self._sample_ratio = self._settings.sample_ratio
            self._thread = threading.Thread(target=self._run, name="spans", daemon=True)
            self._thread.start()

    async def stop(self) -> None:
        """Send what is left, for at most a few seconds."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.put(None)
            await asyncio.to_thread(self._finish, thread)
        if self.dropped:
            _LOG.warning("spans: %d were dropped because too many waited", self.dropped)

    @property
    def sample_ratio(self) -> float:
        """Part of the requests without a client's trace that become spans; 0 where none are sent."""
        return self._sample_ratio

    def begin(self, traceparent: bytes | None) -> TraceContext:
        """The ids of a request that has just arrived, in the client's trace if it sent one."""
        return begin_trace(traceparent, self._sample_ratio)

    def on_end(self, record: RequestRecord) -> None:
        """The request is over (hot path: one look, one put)."""
        if record.is_sampled and self._thread is not None:
            if self._queue.qsize() < QUEUE_LIMIT:
                self._queue.put(record)
            else:
                self.dropped += 1

    def _run(self) -> None:
        assert self._processor is not None
        resource = process_resource("gateway")
        while (record := self._queue.get()) is not None:
            self._processor.on_end(build_span(record, resource))

    def _finish(self, thread: threading.Thread) -> None:
        thread.join()
        assert self._processor is not None
        self._processor.force_flush(_FLUSH_MILLISECONDS)
        self._processor.shutdown()  # type: ignore[no-untyped-call]  # the SDK left its types out here


def build_span(record: RequestRecord, resource: Resource) -> ReadableSpan:
    """The span of a finished request, named and described as the GenAI conventions say."""
    operation = semconv.operation_name(record.path)
    trace_id = int(record.trace_id, 16)
    parent = (
        SpanContext(trace_id, int(record.parent_span_id, 16), is_remote=True, trace_flags=_SAMPLED)
        if record.parent_span_id
        else None
    )
    return ReadableSpan(
        # A name that resolves is one of few; what clients make up must not become a span's name.
        name=f"{operation} {record.model}" if record.target_name else operation,
        context=SpanContext(trace_id, int(record.span_id, 16), is_remote=False, trace_flags=_SAMPLED),
        parent=parent,
        resource=resource,
        attributes=_attributes(record, operation),
        kind=SpanKind.SERVER,
        status=_status(record),
        start_time=int(record.started_at * 1e9),
        end_time=int((record.started_at + max(0.0, record.ended - record.started)) * 1e9),
        instrumentation_scope=_SCOPE,
    )


def _attributes(record: RequestRecord, operation: str) -> dict[str, str | int | float | bool]:
    attributes: dict[str, str | int | float | bool] = {
        semconv.GEN_AI_OPERATION_NAME: operation,
        semconv.HTTP_REQUEST_METHOD: "POST",
        semconv.HTTP_RESPONSE_STATUS_CODE: record.status,
        semconv.URL_PATH: record.path,
        semconv.LORAWAY_REQUEST_ID: record.request_id,
        semconv.GEN_AI_REQUEST_STREAM: record.is_stream,
    }
    optional: dict[str, str | int | None] = {
        semconv.GEN_AI_PROVIDER_NAME: record.engine,
        semconv.GEN_AI_REQUEST_MODEL: record.model[:128],
        semconv.GEN_AI_RESPONSE_MODEL: record.target_name,
        semconv.GEN_AI_RESPONSE_ID: record.completion_id,
        semconv.GEN_AI_USAGE_INPUT_TOKENS: record.prompt_tokens,
        semconv.GEN_AI_USAGE_OUTPUT_TOKENS: record.completion_tokens,
        semconv.ERROR_TYPE: record.error_code,
        semconv.LORAWAY_PROJECT_ID: record.project_id,
        semconv.LORAWAY_BASE_MODEL: record.base_model,
        semconv.LORAWAY_REPLICA_ID: record.replica_id,
        semconv.LORAWAY_RETRIES: record.retries,
    }
    attributes |= {name: value for name, value in optional.items() if value}
    if record.is_stream and record.first_byte:
        attributes[semconv.GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK] = record.first_byte - record.started
    if record.version_id:
        name, _, number = record.target_name.partition("@")
        attributes[semconv.LORAWAY_ADAPTER_NAME] = name
        attributes[semconv.LORAWAY_ADAPTER_VERSION] = int(number) if number.isdigit() else number
        attributes[semconv.LORAWAY_ADAPTER_VERSION_ID] = record.version_id
        attributes[semconv.LORAWAY_ADAPTER_RANK] = record.adapter_rank
    return attributes


def _status(record: RequestRecord) -> Status:
    """As the HTTP conventions say for servers: only what is the server's fault is an error."""
    if record.status >= 500 or (record.error_code and record.status < 400):
        return Status(StatusCode.ERROR, record.error_code or None)
    return Status(StatusCode.UNSET)
