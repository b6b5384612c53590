"""The client's side: HTTP/1.1 as uvicorn's `http=` setting takes it.

One connection carries requests of both planes in any mix. Each is a turn; turns are answered in the order
in which the requests came. A data-plane request becomes an `Exchange` once it is whole, any other a
`ControlTurn` as soon as its head is there. What is no acceptable request becomes a `Refusal`, the
connection's last turn.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine
from time import perf_counter
from typing import Any, Final, Protocol, cast

import httptools
from uvicorn.config import Config
from uvicorn.server import ServerState

from gateway.dataplane.answers import CONTINUE, HeaderFieldsTooLarge, error_answer
from gateway.dataplane.control import (
    ControlPlane,
    ControlTurn,
    Headers,
    hand_over,
    without_upgrade,
    written_anew,
)
from gateway.dataplane.exchange import Exchange
from gateway.dataplane.half_close import HalfClose
from gateway.dataplane.plane import DataPlane
from gateway.dataplane.request import PATHS, Request, is_control, path_of, request_id_of
from loraway.errors import (
    InvalidRequest,
    LorawayError,
    MethodNotAllowed,
    PayloadTooLarge,
    RequestTimedOut,
)

#: How long a client may take to read a refusal while what it still sends is thrown away.
_LINGER_SECONDS: Final = 2.0
#: Trailers of a chunked body are dropped; more than this many is abuse.
_MAX_TRAILERS: Final = 64
_ALLOW: Final = b"allow: POST\r\n"


class Turn(Protocol):
    """One request's place in the order of answers."""

    def begin(self) -> None:
        """All answers before this one are out."""
        ...

    def abandon(self) -> None:
        """The client is gone."""
        ...

    def pause(self) -> None:
        """The client does not take what it was sent."""
        ...

    def resume(self) -> None:
        """It does again."""
        ...


class ClientConnection(asyncio.Protocol):
    """Reads requests from one client and gives each its turn."""

    def __init__(
        self,
        plane: DataPlane,
        connections: set[ClientConnection],
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
    ) -> None:
        self._plane = plane
        self._limits = plane.settings
        self._connections = connections
        self._config = config
        self._state = server_state
        self._app_state = app_state
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._turn: Turn | None = None
        self._waiting: deque[Turn] = deque()
        self._control: ControlPlane | None = None
        self.transport: asyncio.Transport
        self.is_draining = False
        self.is_write_paused = False
        self._is_read_paused = False
        #: Nothing that still comes is a request: the last one was read, or refused.
        self._is_deaf = False
        self._lingers_until = 0.0
        self._half_close: HalfClose | None = None

        # The message being read.
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._is_in_head = False
        self._is_receiving = False
        self._owes_continue = False
        #: At least and at most so many bytes of a head have come: a read may hold more than the head.
        self._head_at_least = self._head_at_most = 0
        self._fed_bytes = 0
        self._receiving: ControlTurn | None = None
        self._path = b""
        self._is_http11 = True
        self._upgrade_head: tuple[bytes, Headers] | None = None

        # What `check` saw last: a message or a turn has begun or ended when the count has moved.
        self._moves = 0
        self._moves_seen = -1
        self._still_since = 0.0

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._connections.add(self)
        self._state.connections.add(cast(Any, self))

    def data_received(self, data: bytes) -> None:
        if self._is_deaf:
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
            if not self._is_deaf:
                self._refuse(_reason(error))
            return
        if self._is_in_head and self._head_at_least > self._limits.max_header_bytes:
            self._refuse(self._head_too_large())

    def eof_received(self) -> bool:
        """The client has ended its side; true keeps ours open, for the answers that it may still read."""
        turn = self._turn
        if not isinstance(turn, Exchange) or self._is_receiving or not HalfClose.can_watch(self.transport):
            return False
        if not self._is_http11 and not turn.has_answered:
            return False  # HTTP/1.0 has no interim answers to find out with
        self._is_deaf = True
        self._half_close = HalfClose(self.transport, self.abort)
        self._half_close.start(nothing_answered=not turn.has_answered)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_deaf = True
        self._connections.discard(self)
        self._state.connections.discard(cast(Any, self))
        if self._half_close is not None:
            self._half_close.stop()
        turn, self._turn = self._turn, None
        self._waiting.clear()
        if turn is not None:
            turn.abandon()
        if self._control is not None:
            self._control.close(exc)
        del self._parser  # it holds our callbacks: the two would wait for the garbage collector

    def pause_writing(self) -> None:
        self.is_write_paused = True
        if self._turn is not None:
            self._turn.pause()

    def resume_writing(self) -> None:
        self.is_write_paused = False
        if self._turn is not None:
            self._turn.resume()

    # -- uvicorn

    def shutdown(self) -> None:
        """The server stops: finish what has begun, take nothing new."""
        self.is_draining = True
        if self._turn is None:
            self.transport.close()
        elif isinstance(self._turn, ControlTurn):
            self._turn.shutdown()

    # -- httptools

    def on_message_begin(self) -> None:
        self._url = b""
        self._headers = {}
        self._is_in_head = self._is_receiving = True
        self._head_at_least = 0
        self._head_at_most = self._fed_bytes
        self._moves += 1

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
            self._begin_control(method, headers)
            return
        self._receiving = None
        if method != b"POST":
            raise MethodNotAllowed(f"{path.decode('latin-1')} takes POST only.")
        if self._is_http11 and b"host" not in headers:
            raise InvalidRequest("The request has no Host header.")
        length = headers.get(b"content-length")
        if length is not None and int(length) > self._limits.max_body_bytes:
            raise self._body_too_large()
        self._body = []
        self._body_bytes = 0
        if headers.get(b"expect", b"").lower() == b"100-continue" and self._is_http11:
            self._owes_continue = True
            self._pay_continue()

    def on_body(self, body: bytes) -> None:
        if self._receiving is not None:
            self._receiving.feed_body(body)
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
        self._is_receiving = self._owes_continue = False
        self._moves += 1
        self._is_deaf = not keeps_alive
        control, self._receiving = self._receiving, None
        if control is not None:
            control.feed_end()
            return
        body, headers = self._body, self._headers
        self._body = []
        request = Request(
            self._path,
            headers,
            body[0] if len(body) == 1 else b"".join(body),
            self._is_http11,
            keeps_alive and self._is_http11,
            request_id_of(headers),
        )
        self._enqueue(Exchange(self._plane, self, request))

    # -- for the turns

    def write(self, data: bytes) -> None:
        """Send bytes of the present turn's answer."""
        self.transport.write(data)

    def create_task(self, story: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a turn's story; the server waits for it when it stops."""
        task = self._loop.create_task(story)
        self._state.tasks.add(task)
        return task

    def forget_task(self, task: asyncio.Task[None]) -> None:
        """The story is told."""
        self._state.tasks.discard(task)
        self._state.total_requests += 1

    def end_turn(self, *, keeps_alive: bool) -> None:
        """The present turn's answer is out: the next one begins, or the connection closes."""
        self._turn = None
        self._moves += 1
        if self.transport.is_closing():
            return
        if self._waiting and keeps_alive:
            self._begin(self._waiting.popleft())
        elif not keeps_alive or self.is_draining or self._half_close is not None:
            self._is_deaf = True
            self.transport.close()
        self._pay_continue()
        if not self._waiting:
            self.resume_body()

    def abort(self) -> None:
        """Close so that the client sees that its answer is incomplete."""
        self._is_deaf = True
        self.transport.abort()

    def linger(self) -> None:
        """Close, but first let the client read the answer: closing on unread data would destroy it."""
        self._is_deaf = True
        if self.transport.is_closing():
            return
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.resume_body()
        self._lingers_until = perf_counter() + _LINGER_SECONDS

    def pause_body(self) -> None:
        """Read no more from the client for now."""
        if not self._is_read_paused and not self.transport.is_closing():
            self._is_read_paused = True
            self.transport.pause_reading()

    def resume_body(self) -> None:
        """Read on."""
        if self._is_read_paused:
            self._is_read_paused = False
            if not self.transport.is_closing():
                self.transport.resume_reading()

    def check(self, now: float) -> None:
        """Called now and then: enforces the limits on time."""
        limits, turn = self._limits.timeouts, self._turn
        if self._lingers_until:
            if now > self._lingers_until:
                self.transport.abort()
        elif isinstance(turn, Exchange):
            turn.check(now)
        elif isinstance(turn, ControlTurn):
            if turn.stalled_seconds(now) > limits.request_arrival_seconds:
                self.transport.close()
        elif self._moves != self._moves_seen:
            self._moves_seen, self._still_since = self._moves, now
        elif self._is_receiving:
            if now - self._still_since > limits.request_arrival_seconds:
                message = f"The request did not arrive within {limits.request_arrival_seconds:g} seconds."
                self._refuse(RequestTimedOut(message))
        elif now - self._still_since > limits.idle_seconds:
            self.transport.close()

    # -- inside

    def _enqueue(self, turn: Turn) -> None:
        if self._turn is None:
            self._begin(turn)
        else:
            # Pipelined. What this read holds is taken, no more is read until it is its turn.
            self._waiting.append(turn)
            self.pause_body()

    def _begin(self, turn: Turn) -> None:
        self._turn = turn
        turn.begin()
        if self.is_write_paused and self._turn is turn:
            turn.pause()

    def _begin_control(self, method: bytes, headers: Headers) -> None:
        if self._control is None:
            self._control = ControlPlane(self, self._config, self._state, self._app_state)
        head = written_anew(method, self._url, self._is_http11, headers)
        self._receiving = ControlTurn(self._control, self, head, b"transfer-encoding" in headers)
        self._enqueue(self._receiving)

    def _pay_continue(self) -> None:
        """Ask for the body of a request that waits for that, once no other answer is under way."""
        if self._owes_continue and self._turn is None:
            self._owes_continue = False
            self.transport.write(CONTINUE)

    def _upgrade(self, rest: bytes) -> None:
        """The client offers another protocol: WebSocket is uvicorn's, any other offer is ignored."""
        assert self._upgrade_head is not None
        (method, headers), self._upgrade_head = self._upgrade_head, None
        offer = headers.get(b"upgrade", b"").lower()
        if offer == b"websocket" and self._turn is None:
            head = written_anew(method, self._url, self._is_http11, headers)
            self._connections.discard(self)
            self._state.connections.discard(cast(Any, self))
            hand_over(self.transport, head + rest, self._config, self._state, self._app_state)
        elif not offer or offer == b"websocket":
            self._refuse(MethodNotAllowed("CONNECT, and an upgrade behind other requests, are not taken."))
        else:
            self._parser = httptools.HttpRequestParser(self)
            head = written_anew(method, self._url, self._is_http11, without_upgrade(headers))
            self.data_received(head + rest)

    def _refuse(self, error: LorawayError) -> None:
        """The last answer of this connection."""
        self._is_deaf = True
        self._is_receiving = self._owes_continue = False
        if self._receiving is not None and self._receiving in self._waiting:
            self._waiting.remove(self._receiving)
        elif self._receiving is not None:
            # The control plane has it already, perhaps answers it: that answer cannot be replaced.
            self.transport.close()
            return
        self._enqueue(Refusal(self, error, self._parser.get_method() == b"HEAD"))

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


class Refusal:
    """The turn of a message that is no acceptable request; the connection closes after it."""

    def __init__(self, client: ClientConnection, error: LorawayError, is_head: bool) -> None:
        self._client = client
        self._error = error
        self._is_head = is_head

    def begin(self) -> None:
        allow = _ALLOW if self._error.status == 405 else b""
        self._client.write(
            error_answer(
                self._error, request_id_of({}), closes=True, headers=allow, has_body=not self._is_head
            )
        )
        self._client.linger()

    def abandon(self) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...


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
