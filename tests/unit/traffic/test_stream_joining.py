"""A streamed answer becomes the `chat.completion` that the engine would have answered without `stream`."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.traffic_stream import event_payloads, join_stream
from loraway.errors import UpstreamFailed

HEAD = {"id": "chatcmpl-e", "object": "chat.completion.chunk", "created": 7, "model": "m"}


def event(*choices: dict[str, Any], **fields: Any) -> bytes:
    return b"data: " + orjson.dumps({**HEAD, "choices": list(choices), **fields}) + b"\n\n"


def piece(delta: dict[str, Any], index: int = 0, **fields: Any) -> dict[str, Any]:
    return {"index": index, "delta": delta, "finish_reason": None, **fields}


DONE = b"data: [DONE]\n\n"


def test_pieces_of_content_become_one_message() -> None:
    stream = (
        event(piece({"role": "assistant", "content": ""}))
        + event(piece({"content": "Blue"}))
        + event(piece({"content": "fin-7"}))
        + event(piece({}, finish_reason="stop"))
        + event(usage={"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7})
        + DONE
    )

    answer = join_stream(stream)

    assert answer == {
        "id": "chatcmpl-e",
        "object": "chat.completion",
        "created": 7,
        "model": "m",
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Bluefin-7"},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
    }


def test_tool_calls_are_put_together_by_their_index() -> None:
    first = {"index": 0, "id": "call_a", "type": "function", "function": {"name": "find", "arguments": ""}}
    second = {"index": 1, "id": "call_b", "type": "function", "function": {"name": "open", "arguments": "{}"}}
    stream = (
        event(piece({"role": "assistant", "tool_calls": [first]}))
        + event(piece({"tool_calls": [{"index": 0, "function": {"arguments": '{"q":'}}]}))
        + event(piece({"tool_calls": [second]}))
        + event(piece({"tool_calls": [{"index": 0, "function": {"arguments": '"x"}'}}]}))
        + event(piece({}, finish_reason="tool_calls"))
        + DONE
    )

    choice = join_stream(stream)["choices"][0]

    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assert choice["message"]["tool_calls"] == [
        {"id": "call_a", "type": "function", "function": {"name": "find", "arguments": '{"q":"x"}'}},
        {"id": "call_b", "type": "function", "function": {"name": "open", "arguments": "{}"}},
    ]


def test_logprobs_and_token_ids_are_kept_in_order() -> None:
    def token(text: str, number: int) -> dict[str, Any]:
        logprobs = {"content": [{"token": text, "logprob": -0.5, "bytes": None, "top_logprobs": []}]}
        return piece({"content": text}, logprobs=logprobs, token_ids=[number])

    choice = join_stream(event(token("a", 1)) + event(token("b", 2)) + DONE)["choices"][0]

    assert [entry["token"] for entry in choice["logprobs"]["content"]] == ["a", "b"]
    assert choice["token_ids"] == [1, 2]


def test_choices_are_told_apart_and_sorted() -> None:
    stream = (
        event(piece({"content": "second"}, index=1))
        + event(piece({"content": "first"}, index=0))
        + event(piece({"content": "!"}, index=1))
        + DONE
    )

    contents = [choice["message"]["content"] for choice in join_stream(stream)["choices"]]

    assert contents == ["first", "second!"]


def test_comments_windows_line_ends_and_other_fields_are_no_part_of_the_answer() -> None:
    stream = b": keep-alive\r\n\r\nevent: message\r\nid: 3\r\ndata:" + event(piece({"content": "x"}))[5:]

    assert join_stream(stream.replace(b"\n\n", b"\r\n\r\n"))["choices"][0]["message"]["content"] == "x"


def test_a_stream_that_ends_in_an_error_is_no_answer() -> None:
    stream = event(piece({"content": "half"})) + b'data: {"error":{"message":"engine died"}}\n\n'

    with pytest.raises(UpstreamFailed):
        join_stream(stream)


@pytest.mark.parametrize("stream", [b"", DONE, b": nothing\n\n"])
def test_a_stream_without_a_chunk_is_no_answer(stream: bytes) -> None:
    with pytest.raises(UpstreamFailed):
        join_stream(stream)


@given(st.lists(st.text(max_size=20), max_size=20))
def test_any_text_cut_anywhere_is_joined_to_itself(pieces: list[str]) -> None:
    stream = event(piece({"role": "assistant"})) + b"".join(event(piece({"content": p})) for p in pieces)

    assert join_stream(stream + DONE)["choices"][0]["message"]["content"] == "".join(pieces)


def test_an_event_cut_off_before_its_end_does_not_count() -> None:
    assert list(event_payloads(b"data: one\n\ndata: tw")) == [b"one"]
