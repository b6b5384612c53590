"""What is read out of an engine's events."""

from __future__ import annotations

import pytest

from gateway.dataplane import sse


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (b'data: {"error": {"message": "full", "code": 503}}\n\ndata: [DONE]\n\n', 503),
        (b'data: {"error":{"message":"bad","code":400}}\n\n', 400),
        (b'data: {"object":"error","message":"full","code":503}\n\n', 503),
        (b'event: error\ndata: {"error":{"message":"x"}}\n\n', 502),
        (b'data: {"error": {"message": "x", "code": "weird"}}\n\n', 502),
        (b'data: {"error": not json\n\n', 502),
    ],
)
def test_error_in_the_first_event_is_found(text: bytes, status: int) -> None:
    error = sse.first_error(text)
    assert error is not None and error.status == status


@pytest.mark.parametrize(
    "text",
    [
        b'data: {"id":"1","object":"chat.completion.chunk","choices":[]}\n\n',
        b'data: {"id":"error"}\n\ndata: {"error":{}}\n\n',
        b"data: [DONE]\n\n",
        b": comment\n\n",
        b"",
    ],
)
def test_other_first_events_are_no_error(text: bytes) -> None:
    assert sse.first_error(text) is None


def test_whole_event_needs_its_empty_line() -> None:
    assert not sse.has_whole_event(b'data: {"a":1}\n')
    assert sse.has_whole_event(b'data: {"a":1}\n\n')
    assert sse.has_whole_event(b'data: {"a":1}\r\n\r\n')
    assert sse.has_whole_event(b"x" * (sse.MAX_FIRST_EVENT_BYTES + 1))


@pytest.mark.parametrize(
    ("text", "usage"),
    [
        (b'{"usage":{"prompt_tokens":5,"total_tokens":7,"completion_tokens":2}}', (5, 2)),
        (b'{"usage": {"completion_tokens": 2, "prompt_tokens": 5}}', (5, 2)),
        (b'{"usage":{"input_tokens":3,"output_tokens":4}}', (3, 4)),
        (b'{"usage":null}', (0, 0)),
        (b'{"content":"\\"usage\\":{\\"prompt_tokens\\":9}"}', (0, 0)),
        (b"", (0, 0)),
    ],
)
def test_usage_is_read_from_the_end(text: bytes, usage: tuple[int, int]) -> None:
    assert sse.read_usage(text) == usage


def test_model_is_not_read_from_inside_a_text() -> None:
    assert sse.named_model(b'{"content":"\\"model\\":\\"other\\"","model":"mine"}') == b'"mine"'
