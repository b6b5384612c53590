"""Makes requests of a client's bytes: HTTP/1.1 parsed by llhttp, with our limits and refusals.

llhttp decides where a message begins and ends. It refuses both length headers together, lengths that are no
numbers, folded and malformed headers; what it lets through and we do not is refused here.
"""

from __future__ import annotations

from typing import Final, Protocol

import httptools

from gateway.dataplane.answers import HeaderFieldsTooLarge
from gateway.dataplane.control import ControlTurn, Headers, without_upgrade, written_anew
from gateway.dataplane.request import PATHS, Request, is_control, path_of, request_id_of
from loraway.errors import InvalidRequest, LorawayError, MethodNotAllowed, PayloadTooLarge
from loraway.settings import GatewaySettings

#: Trailers of a chunked body are dropped; more than this many is abuse.
_MAX_TRAILERS: Final = 64


class RequestTaker(Protocol):
    """Where requests go (`gateway.dataplane.protocol.ClientConnection`)."""

    def take_request(self, request: Request) -> None:
        """A whole request for the data plane."""
        ...

    def take_control(self, head: bytes, *, is_chunked: bool) -> ControlTurn:
        """The head of a request for the control plane; its body is fed to the turn as it comes."""
        ...

    def take_upgrade(self, data: bytes) -> bool:
        """A WebSocket's opening; False where it cannot be taken now."""
        ...

    def take_refusal(self, error: LorawayError, *, is_head: bool, control: ControlTurn | None) -> None:
        """A message that is no acceptable request, the last of this connection; `control` has its head."""
        ...

    def pay_continue(self) -> None:
        """The client waits to be asked for its body: see `owes_continue`."""
        ...


class RequestReader:
    """Reads the messages of one connection, one after the other, into a `RequestTaker`."""

    def __init__(self, taker: RequestTaker, limits: GatewaySettings) -> None:
        self._taker = taker
        self._limits = limits
        self._parser = httptools.HttpRequestParser(self)
        #: Nothing that still comes is a request: the last one was read, or refused.
        self.is_deaf = False
        #: Whether a part of a message has come.
        self.is_receiving = False
        #: Whether the client waits for `100 Continue`.
        self.owes_continue = False
        #: Grows with each message that begins or ends.
        self.moves = 0

        # The message being read.
        self._url = b""
        self._path = b""
        self._headers: dict[bytes, bytes] = {}
        self._is_http11 = True
        self._is_in_head = False
        #: At least and at most so many bytes of a head have come: a read may hold more than the head.
        self._head_at_least = self._head_at_most = 0
        self._fed_bytes = 0
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._control: ControlTurn | None = None
        self._upgrade_head: tuple[bytes, Headers] | None = None

    def feed(self, data: bytes) -> None:
        """Bytes from the client."""
        if self.is_deaf:
            return
        size = self._fed_bytes = len(data)
        if self._is_in_head:
            self._head_at_least += size
            self._head_at_most += size
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._upgrade(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError as error:
            if not self.is_deaf:  # else it is what follows a request with `Connection: close`
                self.refuse(_reason(error))
            return
        if self._is_in_head and self._head_at_least > self._limits.max_header_bytes:
            self.refuse(self._head_too_large())

    def refuse(self, error: LorawayError) -> None:
        """Take nothing more: the message being read is no acceptable request."""
        self.is_deaf = True
        self.is_receiving = self.owes_continue = False
        is_head = self._parser.get_method() == b"HEAD"
        self._taker.take_refusal(error, is_head=is_head, control=self._control)

    def close(self) -> None:
        """The connection is gone. The parser holds our callbacks: the two would wait for the collector."""
        self.is_deaf = True
        del self._parser

    # -- httptools

    def on_message_begin(self) -> None:
        self._url = b""
        self._headers = {}
        self._is_in_head = self.is_receiving = True
        self._head_at_least = 0
        self._head_at_most = self._fed_bytes
        self.moves += 1

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        headers = self._headers
        # What is sent twice is one list (RFC 9110, 5.3).
        headers[name] = value if name not in headers else headers[name] + b", " + value

    def on_headers_complete(self) -> None:
        headers = self._headers
        self._is_in_head = False
        if self._head_at_most > self._limits.max_header_bytes:
            self._check_head(headers)
        method = self._parser.get_method()
        is_data = method == b"POST" and self._url in PATHS  # as nearly every request has it
        self._path = path = self._url if is_data else path_of(self._url)
        # Without that header, keeping alive is what tells the versions apart; asking for it costs more.
        self._is_http11 = (
            self._parser.should_keep_alive()
            if b"connection" not in headers
            else self._parser.get_http_version() == "1.1"
        )
        if self._parser.should_upgrade():
            self._upgrade_head = (method, headers)
            return
        if b"transfer-encoding" in headers:
            if headers[b"transfer-encoding"].lower() != b"chunked":
                raise InvalidRequest("Only the transfer encoding 'chunked' is taken.")
            self._headers = _WithTrailers(headers)
        if not is_data and is_control(path, method):
            head = written_anew(method, self._url, self._is_http11, headers)
            self._control = self._taker.take_control(head, is_chunked=b"transfer-encoding" in headers)
            return
        if method != b"POST":
            raise MethodNotAllowed(f"{path.decode('latin-1')} takes POST only.")
        if self._is_http11 and b"host" not in headers:
            raise InvalidRequest("The request has no Host header.")
        length = headers.get(b"content-length")
        if length is not None and int(length) > self._limits.max_body_bytes:
            raise self._body_too_large()
        self._body_bytes = 0
        if b"expect" in headers and self._is_http11:
            self.owes_continue = headers[b"expect"].lower() == b"100-continue"
            self._taker.pay_continue()

    def on_body(self, body: bytes) -> None:
        if self._control is not None:
            self._control.feed_body(body)
            return
        self._body.append(body)
        self._body_bytes += len(body)
        if self._body_bytes > self._limits.max_body_bytes:
            raise self._body_too_large()

    def on_message_complete(self) -> None:
        if self._upgrade_head is not None:
            return
        # Asked now: once the message is over, llhttp says no.
        keeps_alive = self._parser.should_keep_alive()
        self.is_receiving = self.owes_continue = False
        self.moves += 1
        self.is_deaf = not keeps_alive
        control, self._control = self._control, None
        if control is not None:
            control.feed_end()
            return
        body, self._body = self._body, []
        headers, is_http11 = self._headers, self._is_http11
        self._taker.take_request(
            Request(
                self._path,
                headers,
                body[0] if len(body) == 1 else b"".join(body),
                is_http11,
                keeps_alive and is_http11,
                request_id_of(headers),
            )
        )

    # -- inside

    def _upgrade(self, rest: bytes) -> None:
        """The client offers another protocol: WebSocket is uvicorn's, any other offer is ignored."""
        assert self._upgrade_head is not None
        (method, headers), self._upgrade_head = self._upgrade_head, None
        offer = headers.get(b"upgrade", b"").lower()
        if offer and offer != b"websocket":
            self._parser = httptools.HttpRequestParser(self)
            self.feed(written_anew(method, self._url, self._is_http11, without_upgrade(headers)) + rest)
            return
        head = written_anew(method, self._url, self._is_http11, headers)
        if not offer or not self._taker.take_upgrade(head + rest):
            self.refuse(MethodNotAllowed("CONNECT, and an upgrade behind other requests, are not taken."))

    def _check_head(self, headers: Headers) -> None:
        size = len(self._url) + sum(len(name) + len(value) + 4 for name, value in headers.items())
        if size > self._limits.max_header_bytes:
            raise self._head_too_large()

    def _head_too_large(self) -> LorawayError:
        return HeaderFieldsTooLarge(
            f"The request's head is larger than {self._limits.max_header_bytes} bytes."
        )

    def _body_too_large(self) -> LorawayError:
        return PayloadTooLarge(f"The request's body is larger than {self._limits.max_body_bytes} bytes.")


class _WithTrailers(dict[bytes, bytes]):
    """The headers of a message with a chunked body: trailers, which nobody reads, are not added to them."""

    def __init__(self, headers: Headers) -> None:
        super().__init__(headers)
        self._trailers = 0

    def __setitem__(self, name: bytes, value: bytes) -> None:
        self._trailers += 1
        if self._trailers > _MAX_TRAILERS:
            raise InvalidRequest("The request has too many trailers.")


def _reason(error: httptools.HttpParserError) -> LorawayError:
    """Why a message was not taken: what a callback of ours raised, or what llhttp says."""
    cause = error.__context__
    return cause if isinstance(cause, LorawayError) else InvalidRequest(f"Not a valid HTTP request: {error}.")
