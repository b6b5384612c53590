"""What is kept of a stored completion: a finished request's record becomes rows of the database."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from gateway.record import RequestRecord
from gateway.traffic_stream import join_stream
from loraway.errors import InvalidRequest, UpstreamFailed

#: OpenAI's limits of `metadata` (API reference, "Create chat completion").
MAX_PAIRS, MAX_KEY, MAX_VALUE = 16, 64, 512


@dataclass(frozen=True, slots=True)
class CompletionRow:
    """One row of `completions`, and its rows of `completion_metadata`."""

    values: dict[str, Any]
    metadata: dict[str, str]


def build_row(record: RequestRecord, ended: float) -> CompletionRow:
    """The rows of a record; `ended` is the perf_counter reading at which its answer was complete.

    The response keeps what the engine said; its `id` becomes the completion's and its `model` the name of
    what answered. Raises `InvalidRequest` for bad metadata, `UpstreamFailed` where there is no answer.
    """
    request = orjson.loads(record.request_body)
    metadata = checked_metadata(request.get("metadata"))
    response = _response(record)
    response["id"] = record.completion_id
    response["model"] = record.target_name or record.model
    usage = response.get("usage") or {}
    choices = response["choices"]
    values = {
        "id": record.completion_id,
        "project_id": record.project_id,
        "request_id": record.request_id,
        "model": record.target_name or record.model,
        "base_model": record.base_model,
        "version_id": record.version_id,
        "replica_id": record.replica_id,
        "request": record.request_body.decode(),
        "response": orjson.dumps(response).decode(),
        "metadata": orjson.dumps(metadata).decode(),
        "is_stream": record.is_stream,
        "finish_reason": choices[0].get("finish_reason") if choices else None,
        "prompt_tokens": usage.get("prompt_tokens", record.prompt_tokens or None),
        "completion_tokens": usage.get("completion_tokens", record.completion_tokens or None),
        "ttft_seconds": record.first_byte - record.started if record.first_byte else None,
        "duration_seconds": ended - record.started if record.started else None,
        "traceparent": traceparent(record),
        "created_at": record.started_at,
    }
    return CompletionRow(values, metadata)


def checked_metadata(metadata: object) -> dict[str, str]:
    """The request's `metadata` within OpenAI's limits; raises `InvalidRequest` that says what is wrong."""
    if metadata is None:
        return {}
    if not isinstance(metadata, dict):
        raise InvalidRequest("'metadata' must be an object of strings.", param="metadata")
    if len(metadata) > MAX_PAIRS:
        raise InvalidRequest(
            f"'metadata' has {len(metadata)} pairs; at most {MAX_PAIRS} are kept.", param="metadata"
        )
    for key, value in metadata.items():
        if not isinstance(value, str):
            raise InvalidRequest(f"'metadata.{key[:64]}' must be a string.", param="metadata")
        if not 0 < len(key) <= MAX_KEY or len(value) > MAX_VALUE:
            limits = f"keys have 1 to {MAX_KEY} characters and values at most {MAX_VALUE}"
            raise InvalidRequest(f"'metadata.{key[:64]}' is too long: {limits}.", param="metadata")
        if "\x00" in key or "\x00" in value:
            raise InvalidRequest("'metadata' must not hold NUL characters.", param="metadata")
    return metadata


def traceparent(record: RequestRecord) -> str | None:
    """The W3C trace context of the request's own span."""
    if not record.trace_id:
        return None
    return f"00-{record.trace_id}-{record.span_id}-{'01' if record.is_sampled else '00'}"


def _response(record: RequestRecord) -> dict[str, Any]:
    body = b"".join(record.response_parts or ())
    if record.is_stream:
        return join_stream(body)
    response = orjson.loads(body)
    if not isinstance(response, dict) or not isinstance(response.get("choices"), list):
        raise UpstreamFailed("The engine's answer is not a chat completion.")
    return response
