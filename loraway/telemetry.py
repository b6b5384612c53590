"""Logs and traces, for every process: how lines look, which ids a request gets, where spans go.

Spans hold neither prompts nor answers nor secrets; log lines have keys and passwords struck out.
"""

from __future__ import annotations

import logging
import os
import random
import re
import sys
import time
from dataclasses import dataclass
from typing import Final

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import BatchSpanProcessor

import loraway
from loraway.settings import TelemetrySettings

_ENDPOINT_VARIABLES: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
#: W3C Trace Context, version 00 and what later versions must keep: ids in lower case, not all zeros.
_TRACEPARENT: Final = re.compile(
    rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?"
)


@dataclass(frozen=True, slots=True)
class TraceContext:
    """Who a request is in its trace: hexadecimal ids; `parent_span_id` is the client's, or empty."""

    trace_id: str
    span_id: str
    parent_span_id: str
    is_sampled: bool

    @property
    def traceparent(self) -> str:
        """The header that makes what follows a child of this request's span."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.is_sampled else '00'}"


def begin_trace(traceparent: bytes | None, sample_ratio: float) -> TraceContext:
    """Join the client's trace, whose sampling then counts, or start one sampled with this ratio."""
    span_id = f"{random.getrandbits(64) or 1:016x}"
    if traceparent is not None:
        match = _TRACEPARENT.fullmatch(traceparent.strip())
        if match is not None:
            is_sampled = bool(int(match[3], 16) & 1)
            return TraceContext(match[1].decode(), span_id, match[2].decode(), is_sampled)
    is_sampled = sample_ratio > 0 and random.random() < sample_ratio
    return TraceContext(f"{random.getrandbits(128) or 1:032x}", span_id, "", is_sampled)


def process_resource(process_name: str) -> Resource:
    """What this process says of itself; OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES come on top."""
    named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": f"loraway-{process_name}"}
    return Resource.create({**named, "service.version": loraway.__version__, "process.pid": os.getpid()})


def span_processor(settings: TelemetrySettings) -> BatchSpanProcessor | None:
    """Sends spans over OTLP/HTTP from a thread of its own; None where no endpoint is configured."""
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    if settings.otlp_endpoint:
        endpoint = settings.otlp_endpoint.rstrip("/") + "/v1/traces"
        return BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint))
    if any(os.environ.get(name) for name in _ENDPOINT_VARIABLES):
        return BatchSpanProcessor(OTLPSpanExporter())
    return None


# -- logs

_SECRETS: Final = (
    (re.compile(r"(?i)(bearer\s+)[^\s'\",]+"), r"\1[hidden]"),
    (re.compile(r"\b((?:sk|lw|hf|key)[-_])[A-Za-z0-9_-]{8,}"), r"\1[hidden]"),
    (re.compile(r"(\w+://[^\s:/@]+:)[^\s@/]+(@)"), r"\1[hidden]\2"),
    (re.compile(r"(?i)\b((?:api_?key|password|secret|token)\s*[=:]\s*)[^\s,;)]+"), r"\1[hidden]"),
)
#: What every log record has; anything else came as `extra=` and is printed as name=value.
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def redact(text: str) -> str:
    """The text without keys, bearer tokens and passwords."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


class LineFormatter(logging.Formatter):
    """`2026-11-24T11:12:13.123Z INFO gateway[4711] gateway.traffic: message name=value`."""

    def __init__(self, process_name: str) -> None:
        super().__init__()
        self._process_name = process_name

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        extra = "".join(f" {name}={value!r}" for name, value in vars(record).items() if name not in _STANDARD)
        line = (
            f"{moment}.{int(record.msecs):03d}Z {record.levelname} {self._process_name}[{record.process}] "
            f"{record.name}: {record.getMessage()}{extra}"
        )
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return redact(line)


def configure_logging(process_name: str, level: int = logging.INFO) -> None:
    """Send this process's log to stderr, one readable line each, secrets struck out."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter(process_name))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for chatty in ("httpx", "httpcore", "urllib3", "alembic"):
        logging.getLogger(chatty).setLevel(max(level, logging.WARNING))
