"""What every control-plane request passes first: id, key, limits. Before a byte of its body is read."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.api.errors import error_response
from gateway.dataplane.request import request_id_of
from gateway.keys import digest_of
from gateway.routing.snapshot import Key
from gateway.routing.source import SnapshotSource
from loraway.errors import (
    AuthenticationFailed,
    InvalidRequest,
    LorawayError,
    PayloadTooLarge,
    RequestTimedOut,
)

_LOG = logging.getLogger(__name__)

#: Paths without a key. All others need one, those that do not exist as well.
OPEN_PATHS: Final = frozenset({"/healthz", "/readyz", "/metrics", "/openapi.json", "/docs"})
#: Uploads have a limit of their own.
UPLOAD_PATH: Final = "/v1/files"
#: Room in an upload for what is not the file: boundaries, headers, other fields.
FORM_BYTES: Final = 64 * 2**10


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client may send, and how slowly."""

    json_bytes: int
    upload_bytes: int
    #: Until a whole JSON body is here; for an upload, until its next part is.
    arrival_seconds: float


class Edge:
    """ASGI middleware around the app: gives each request its id, lets in who has a key, holds the limits.

    Leaves the key in `scope["state"]["key"]`. An error that nobody else has turned into an answer is logged
    here and becomes a 500 in OpenAI's shape.
    """

    def __init__(self, app: ASGIApp, snapshots: SnapshotSource, limits: Limits) -> None:
        self._app = app
        self._snapshots = snapshots
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(send, request_id_of(dict(scope["headers"])).decode())
        try:
            body = self._admit(scope, receive)
        except LorawayError as error:
            await answer.refuse(scope, receive, error)
            return
        try:
            await self._app(scope, body, answer.send)
        except Exception:  # the request's outermost edge
            _LOG.exception("%s: %s %s failed", answer.request_id, scope["method"], scope["path"])
            if answer.has_begun:
                raise
            await answer.refuse(scope, receive, LorawayError(f"Internal error ({answer.request_id})."))

    def _admit(self, scope: Scope, receive: Receive) -> Receive:
        """The request's body, guarded. Raises when the request may not come in."""
        headers = Headers(scope=scope)
        if scope["path"] not in OPEN_PATHS:
            scope.setdefault("state", {})["key"] = self._authenticate(headers)
        if "\0" in scope["path"] or b"%00" in scope["query_string"] or b"\0" in scope["query_string"]:
            raise InvalidRequest("The URL must not hold NUL characters.")
        is_upload = scope["path"] == UPLOAD_PATH
        limit = self._limits.upload_bytes + FORM_BYTES if is_upload else self._limits.json_bytes
        announced = headers.get("content-length", "")
        if announced.isdigit() and int(announced) > limit:
            raise PayloadTooLarge(_too_large(limit))
        return _Body(receive, limit, self._limits.arrival_seconds, may_take_long=is_upload).receive

    def _authenticate(self, headers: Headers) -> Key:
        """As the data plane does: a bearer token, or the header of Anthropic's clients."""
        scheme, _, secret = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            secret = headers.get("x-api-key", "")
        key = self._snapshots.current.keys.get(digest_of(secret.strip().encode("latin-1")))
        if key is None:
            raise AuthenticationFailed
        return key


class _Body:
    """Receives a body within its limits; what breaks them ends the request as the framework's own error."""

    def __init__(self, receive: Receive, limit: int, arrival_seconds: float, *, may_take_long: bool) -> None:
        self._receive = receive
        self._limit = limit
        self._arrival_seconds = arrival_seconds
        self._may_take_long = may_take_long
        self._deadline = self._next_deadline()
        self._received = 0
        self._is_complete = False

    async def receive(self) -> Message:
        if self._is_complete:  # waiting for the client to go away, which may take as long as it likes
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError as error:
            late = f"The rest of the body did not arrive within {self._arrival_seconds:g} seconds."
            raise HTTPException(RequestTimedOut.status, late, {"connection": "close"}) from error
        self._received += len(message.get("body", b""))
        if self._received > self._limit:
            raise HTTPException(PayloadTooLarge.status, _too_large(self._limit))
        self._is_complete = message["type"] != "http.request" or not message.get("more_body", False)
        if self._may_take_long:
            self._deadline = self._next_deadline()
        return message

    def _next_deadline(self) -> float:
        return asyncio.get_running_loop().time() + self._arrival_seconds


class _Answer:
    """Sends the answer, with the request's id on it."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self.request_id = request_id
        self.has_begun = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.has_begun = True
            MutableHeaders(scope=message)["x-request-id"] = self.request_id
        await self._send(message)

    async def refuse(self, scope: Scope, receive: Receive, error: LorawayError) -> None:
        """Answer with an error; what is left of the body is read and dropped by the server's protocol.

        Closing the connection instead would reset it, and the client would not see the answer.
        """
        await error_response(error)(scope, receive, self.send)


def _too_large(limit: int) -> str:
    return f"The request body is larger than {limit} bytes."
