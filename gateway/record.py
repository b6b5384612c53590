"""The finished record of one request: what the traffic log stores, spans and metrics are built from."""

from __future__ import annotations

from dataclasses import dataclass

from loraway.ids import ProjectId, ReplicaId, VersionId


@dataclass(slots=True)
class RequestRecord:
    """Filled in by the exchange as the request goes on; handed over once, when it ended."""

    request_id: str
    path: str
    #: Wall clock, seconds since the epoch.
    started_at: float
    #: perf_counter readings; 0.0 where the event did not happen.
    started: float = 0.0
    first_byte: float = 0.0
    ended: float = 0.0
    project_id: ProjectId | None = None
    key_id: str | None = None
    model: str = ""
    target_name: str = ""
    base_model: str = ""
    version_id: VersionId | None = None
    adapter_rank: int = 0
    replica_id: ReplicaId | None = None
    engine: str = ""
    is_stream: bool = False
    status: int = 0
    error_code: str | None = None
    #: Set when the request is stored: the id that feedback refers to.
    completion_id: str | None = None
    request_body: bytes = b""
    #: The body as it went to the client (SSE text for a stream), kept only when stored or sampled.
    response_parts: list[bytes] | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    chunks: int = 0
    #: W3C trace context: 32 hex and 16 hex; the parent span's id as the client sent it, or "".
    trace_id: str = ""
    span_id: str = ""
    parent_span_id: str = ""
    is_sampled: bool = False
    retries: int = 0
