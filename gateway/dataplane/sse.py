"""The one place that knows server-sent events as engines send them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

import orjson

from loraway.errors import LorawayError, error_body

DONE: Final = b"data: [DONE]\n\n"
NOT_STORED: Final = b": loraway: this completion was not stored\n\n"
#: An event that has not ended after so many bytes is passed on unseen.
MAX_FIRST_EVENT_BYTES: Final = 64 * 1024

_EVENT_END: Final = re.compile(rb"\r?\n\r?\n")
_FIRST_ERROR: Final = re.compile(rb'\s*(?:event:\s*error|data:\s*\{\s*"(?:error|object"\s*:\s*"error))')
_USAGE: Final = b'"usage":'
#: As vLLM and SGLang write it: one match instead of two searches.
_USUAL: Final = re.compile(
    rb'"usage":\s*\{"prompt_tokens":\s*(\d+),\s*"total_tokens":\s*\d+,\s*"completion_tokens":\s*(\d+)'
)
_PROMPT_TOKENS: Final = re.compile(rb'"prompt_tokens":\s*(\d+)')
_COMPLETION_TOKENS: Final = re.compile(rb'"completion_tokens":\s*(\d+)')
#: As `/v1/responses` and `/v1/messages` call them.
_INPUT_TOKENS: Final = re.compile(rb'"input_tokens":\s*(\d+)')
_OUTPUT_TOKENS: Final = re.compile(rb'"output_tokens":\s*(\d+)')
_MODEL: Final = re.compile(rb'"model"\s*:\s*("[^"\\]*")')


@dataclass(frozen=True, slots=True)
class EventError:
    """An error that an engine sent as an event, with the HTTP status that it means."""

    status: int
    body: bytes


def has_whole_event(text: bytes) -> bool:
    """Whether the first event is there, so that it can be looked at."""
    return _EVENT_END.search(text) is not None or len(text) > MAX_FIRST_EVENT_BYTES


def first_error(text: bytes) -> EventError | None:
    """The error in the first event, if it is one: engines say "full" inside a 200 stream (SGLang)."""
    if _FIRST_ERROR.match(text) is None:
        return None
    payload = b"".join(
        line[5:].strip() for line in _EVENT_END.split(text, 1)[0].splitlines() if line.startswith(b"data:")
    )
    try:
        fields: Any = orjson.loads(payload)
    except orjson.JSONDecodeError:
        return EventError(502, payload)
    error = fields.get("error", fields) if isinstance(fields, dict) else None
    code = error.get("code") if isinstance(error, dict) else None
    return EventError(code if isinstance(code, int) and 400 <= code < 600 else 502, payload)


def error_event(error: LorawayError) -> bytes:
    """What ends a stream that broke off; no `[DONE]` follows."""
    return b"data: %b\n\n" % orjson.dumps(error_body(error))


def read_usage(text: bytes) -> tuple[int, int]:
    """Prompt and completion tokens as the last `usage` in the text says; zeros where there is none."""
    place = text.rfind(_USAGE)
    if place < 0:
        return 0, 0
    usual = _USUAL.match(text, place)
    if usual is not None:
        return int(usual[1]), int(usual[2])
    prompt = _PROMPT_TOKENS.search(text, place) or _INPUT_TOKENS.search(text, place)
    completion = _COMPLETION_TOKENS.search(text, place) or _OUTPUT_TOKENS.search(text, place)
    return int(prompt[1]) if prompt else 0, int(completion[1]) if completion else 0


def named_model(text: bytes) -> bytes | None:
    """The first `model` in the text as JSON text, quotes included."""
    match = _MODEL.search(text)
    return match[1] if match else None
