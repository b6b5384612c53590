"""A data-plane request as the client sent it, and which requests those are."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import Final

from loraway.ids import REQUEST, new_id

CHAT_PATH: Final = b"/v1/chat/completions"

#: What the data plane serves itself, always by POST; everything else is the control plane's.
PATHS: Final = frozenset(
    {
        CHAT_PATH,
        b"/v1/completions",
        b"/v1/embeddings",
        b"/v1/responses",
        b"/v1/messages",
        b"/tokenize",
        b"/detokenize",
        b"/v1/rerank",
        b"/rerank",
        b"/v1/score",
        b"/score",
    }
)
#: Methods by which these paths, too, belong to the control plane (CORS; the list of stored completions).
_CONTROL_METHODS: Final = frozenset({b"OPTIONS"})

_SANE_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,64}")
#: One part for the process, drawn at its start, and a number for each request.
_PROCESS_PART: Final = new_id(REQUEST).encode() + b"-"
_NUMBERS: Final = itertools.count(1)


@dataclass(slots=True)
class Request:
    """A whole request. `headers` has lower-case names; of a name sent twice the last value."""

    path: bytes
    headers: dict[bytes, bytes]
    body: bytes
    #: Whether the client speaks HTTP/1.1, so takes chunks and interim answers.
    is_http11: bool
    keeps_alive: bool
    request_id: bytes


def request_id_of(headers: dict[bytes, bytes]) -> bytes:
    """The client's own `x-request-id` where it is sane, else a new one, unique to this process."""
    given = headers.get(b"x-request-id")
    if given is not None and _SANE_REQUEST_ID.fullmatch(given):
        return given
    return b"%b%x" % (_PROCESS_PART, next(_NUMBERS))


def path_of(url: bytes) -> bytes:
    """The path of a request target, without query; of the absolute form too."""
    if not url.startswith(b"/") and b"://" in url:
        url = b"/" + url.split(b"://", 1)[1].partition(b"/")[2]
    return url.split(b"?", 1)[0] if b"?" in url else url


def is_control(path: bytes, method: bytes) -> bool:
    """Whether the control plane answers this request."""
    if path not in PATHS:
        return True
    return method != b"POST" and (path == CHAT_PATH or method in _CONTROL_METHODS)
