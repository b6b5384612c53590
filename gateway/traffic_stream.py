"""Joins a streamed chat answer (SSE text) into the one `chat.completion` object it amounts to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from loraway.errors import UpstreamFailed

#: Parts of a delta that are sent in pieces of text.
_TEXTS = ("content", "refusal", "reasoning", "reasoning_content")
#: Fields of a chunk's choice that stand for the whole choice; the last one that is not null counts.
_CHOICE_FIELDS = ("finish_reason", "stop_reason")
#: Fields of a chunk that stand for the whole answer; the last one that is not null counts.
_ANSWER_FIELDS = ("usage", "system_fingerprint", "service_tier", "prompt_token_ids")


def join_stream(text: bytes) -> dict[str, Any]:
    """The `chat.completion` of a stream's SSE text, as the engine would have answered without `stream`.

    Raises `UpstreamFailed` where the stream holds an error instead of an answer, or no chunk at all, and
    `ValueError` where an event is not JSON.
    """
    answer: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    for payload in event_payloads(text):
        if payload == b"[DONE]":
            break
        chunk = orjson.loads(payload)
        if "error" in chunk:
            raise UpstreamFailed("The stream ended in an error.")
        if not answer:
            answer = {"id": chunk.get("id"), "object": "chat.completion"}
            answer |= {name: chunk[name] for name in ("created", "model") if name in chunk}
        answer |= {name: chunk[name] for name in _ANSWER_FIELDS if chunk.get(name) is not None}
        for piece in chunk.get("choices") or ():
            _add_piece(choices.setdefault(piece.get("index", 0), _new_choice(piece)), piece)
    if not answer:
        raise UpstreamFailed("The stream ended without an answer.")
    answer["choices"] = [_finished(choices[index]) for index in sorted(choices)]
    return answer


def event_payloads(text: bytes) -> Iterator[bytes]:
    """The data of each event; comments and other fields are skipped (WHATWG HTML, 9.2.6)."""
    lines: list[bytes] = []
    for line in text.replace(b"\r\n", b"\n").split(b"\n"):
        if line.startswith(b"data:"):
            lines.append(line[6:] if line.startswith(b"data: ") else line[5:])
        elif not line and lines:
            yield lines[0] if len(lines) == 1 else b"\n".join(lines)
            lines = []
    # An event that was cut off before its empty line never happened.


def _new_choice(piece: dict[str, Any]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": []}
    return {"index": piece.get("index", 0), "message": message, "logprobs": None, "finish_reason": None}


def _add_piece(choice: dict[str, Any], piece: dict[str, Any]) -> None:
    delta = piece.get("delta") or {}
    message = choice["message"]
    for name in _TEXTS:
        if delta.get(name):
            message.setdefault(name, []).append(delta[name])
    if delta.get("role"):
        message["role"] = delta["role"]
    for call in delta.get("tool_calls") or ():
        _add_tool_call(message.setdefault("tool_calls", {}), call)
    for name in _CHOICE_FIELDS:
        if piece.get(name) is not None:
            choice[name] = piece[name]
    if piece.get("token_ids"):
        choice.setdefault("token_ids", []).extend(piece["token_ids"])
    for name, entries in (piece.get("logprobs") or {}).items():
        if entries:
            choice["logprobs"] = choice["logprobs"] or {}
            choice["logprobs"].setdefault(name, []).extend(entries)


def _add_tool_call(calls: dict[int, dict[str, Any]], piece: dict[str, Any]) -> None:
    call = calls.setdefault(
        piece.get("index", len(calls)),
        {"id": None, "type": "function", "function": {"name": "", "arguments": []}},
    )
    for name in ("id", "type"):
        if piece.get(name):
            call[name] = piece[name]
    function = piece.get("function") or {}
    if function.get("name"):
        call["function"]["name"] = function["name"]
    if function.get("arguments"):
        call["function"]["arguments"].append(function["arguments"])


def _finished(choice: dict[str, Any]) -> dict[str, Any]:
    """The choice with its pieces of text put together."""
    message = choice["message"]
    for name in _TEXTS:
        if name in message:
            message[name] = "".join(message[name])
    if "tool_calls" in message:
        calls = message["tool_calls"]
        message["tool_calls"] = [calls[index] for index in sorted(calls)]
        for call in message["tool_calls"]:
            call["function"]["arguments"] = "".join(call["function"]["arguments"])
        message["content"] = message["content"] or None  # as OpenAI writes an answer that only calls tools
    return choice
