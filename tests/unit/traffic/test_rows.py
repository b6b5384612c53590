"""A finished request's record becomes the rows that are kept of it."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from gateway.record import RequestRecord
from gateway.traffic_row import build_row, checked_metadata
from loraway.errors import InvalidRequest, UpstreamFailed
from loraway.ids import ProjectId, VersionId

ANSWER: dict[str, Any] = {
    "id": "chatcmpl-of-the-engine",
    "object": "chat.completion",
    "created": 1,
    "model": "codename@2.abcdef",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "length"}],
    "usage": {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10},
}


def record(body: dict[str, Any], answer: bytes, **fields: Any) -> RequestRecord:
    return RequestRecord(
        request_id="req_1",
        path="/v1/chat/completions",
        started_at=1000.0,
        started=50.0,
        first_byte=50.25,
        project_id=ProjectId("proj_1"),
        model="codename",
        target_name="codename@2",
        base_model="base",
        version_id=VersionId("version-2"),
        completion_id="chatcmpl-ours",
        request_body=orjson.dumps(body),
        response_parts=[answer[:10], answer[10:]],
        trace_id="a" * 32,
        span_id="b" * 16,
        is_sampled=True,
        **fields,
    )


def test_the_stored_answer_carries_our_id_and_the_version_that_answered() -> None:
    row = build_row(record({"model": "codename", "messages": []}, orjson.dumps(ANSWER)), ended=51.0)

    stored = orjson.loads(row.values["response"])
    assert stored["id"] == "chatcmpl-ours"
    assert stored["model"] == "codename@2"
    assert stored["choices"] == ANSWER["choices"]
    assert row.values["finish_reason"] == "length"
    assert (row.values["prompt_tokens"], row.values["completion_tokens"]) == (9, 1)
    assert (row.values["ttft_seconds"], row.values["duration_seconds"]) == (0.25, 1.0)
    assert row.values["traceparent"] == f"00-{'a' * 32}-{'b' * 16}-01"


def test_the_request_is_kept_as_it_was_sent() -> None:
    body = {"model": "codename", "messages": [{"role": "user", "content": "Größe\n\u0000"}], "x": 1}

    row = build_row(record(body, orjson.dumps(ANSWER)), ended=51.0)

    assert orjson.loads(row.values["request"]) == body


def test_metadata_is_kept_as_pairs() -> None:
    body = {"model": "codename", "messages": [], "metadata": {"topic": "codename", "user": "7"}}

    assert build_row(record(body, orjson.dumps(ANSWER)), ended=51.0).metadata == body["metadata"]


@pytest.mark.parametrize("answer", [b"[]", b'{"error":{}}', b'{"choices":null}'])
def test_what_is_not_a_chat_completion_is_refused(answer: bytes) -> None:
    with pytest.raises(UpstreamFailed):
        build_row(record({"model": "codename", "messages": []}, answer), ended=51.0)


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        (["a"], "object"),
        ({"a": 1}, "metadata.a"),
        ({"k" * 65: "v"}, "64"),
        ({"": "v"}, "1 to 64"),
        ({"k": "v" * 513}, "512"),
        ({str(n): "v" for n in range(17)}, "17 pairs"),
        ({"k": "a\x00b"}, "NUL"),
    ],
)
def test_metadata_beyond_openai_limits_is_refused_with_the_reason(metadata: object, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said) as refused:
        checked_metadata(metadata)
    assert refused.value.param == "metadata"


def test_metadata_at_the_limits_is_taken() -> None:
    metadata = {f"{n:064d}": "v" * 512 for n in range(16)}

    assert checked_metadata(metadata) == metadata
    assert checked_metadata(None) == {}
