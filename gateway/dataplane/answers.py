"""The answers that the data plane writes itself: status lines, heads and errors in OpenAI's shape."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

import orjson

from loraway.errors import LorawayError, error_body


def _status_line(status: int) -> bytes:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    return f"HTTP/1.1 {status} {phrase}\r\n".encode()


STATUS_LINES: Final = {status: _status_line(status) for status in range(100, 600)}
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
PROCESSING: Final = b"HTTP/1.1 102 Processing\r\n\r\n"
LAST_CHUNK: Final = b"0\r\n\r\n"


class HeaderFieldsTooLarge(LorawayError):
    """The request's head is too large."""

    status = 431
    type = "invalid_request_error"
    code = "request_header_fields_too_large"


def error_answer(
    error: LorawayError, request_id: bytes, *, closes: bool, headers: bytes = b"", has_body: bool = True
) -> bytes:
    """A whole answer for an error; `headers` are whole lines."""
    body = orjson.dumps(error_body(error))
    lines = [
        STATUS_LINES[error.status],
        b"content-type: application/json\r\ncontent-length: %d\r\nx-request-id: %b\r\n"
        % (len(body), request_id),
        headers,
    ]
    if error.retry_after_seconds is not None:
        lines.append(b"retry-after: %d\r\n" % error.retry_after_seconds)
    if error.status == 401:
        lines.append(b"www-authenticate: Bearer\r\n")
    if closes:
        lines.append(b"connection: close\r\n")
    lines.append(b"\r\n")
    if has_body:
        lines.append(body)
    return b"".join(lines)
