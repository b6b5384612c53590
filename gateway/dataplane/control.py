"""The control plane's requests on a connection that the data plane reads: uvicorn's protocol answers them.

The data plane's parser decides where a message begins and ends. What uvicorn's protocol is fed is that
message written anew from what was parsed, so the two can never disagree about it; an upload passes through
piece by piece. One such protocol object serves a connection for its whole life, one turn at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Protocol

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

#: Lower-case names.
Headers = dict[bytes, bytes]


class SharedConnection(Protocol):
    """The client's connection (`gateway.dataplane.protocol.ClientConnection`)."""

    transport: asyncio.Transport

    def end_turn(self, *, keeps_alive: bool) -> None: ...

    def pause_body(self) -> None:
        """Read no more of the client's request."""
        ...

    def resume_body(self) -> None:
        """Read on."""
        ...

    def linger(self) -> None:
        """Close, but let the client read its answer first."""
        ...


class ControlPlane:
    """uvicorn's protocol for one connection, and whose turn it is there."""

    def __init__(self, client: SharedConnection, config: Config, state: ServerState, app_state: Any) -> None:
        self._client = client
        self.turn: ControlTurn | None = None
        self.protocol = _UvicornProtocol(self, config, state, app_state)
        self.protocol.connection_made(_TurnTransport(self, client))
        state.connections.discard(self.protocol)  # its connection is ours to shut down

    def close(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self.protocol.connection_lost(exc)


class ControlTurn:
    """One request for the control plane. Its bytes wait here until the answers before it are out."""

    def __init__(self, plane: ControlPlane, client: SharedConnection, head: bytes, is_chunked: bool) -> None:
        self._plane = plane
        self._client = client
        self._waiting: list[bytes] | None = [head]
        self._is_chunked = is_chunked
        self.is_received = False
        self._is_answered = False
        self._fed = 0
        self._fed_seen = -1
        self._quiet_since = 0.0

    # -- the request, as it comes

    def feed_body(self, body: bytes) -> None:
        """A piece of the request's body."""
        self._fed += 1
        self._feed(b"%x\r\n%b\r\n" % (len(body), body) if self._is_chunked else body)

    def feed_end(self) -> None:
        """The request is complete."""
        self.is_received = True
        if self._is_chunked:
            self._feed(b"0\r\n\r\n")
        if self._is_answered:
            self._end()

    # -- a turn on the connection

    def begin(self) -> None:
        """The answers before this one are out."""
        self._plane.turn = self
        waiting, self._waiting = self._waiting, None
        assert waiting is not None
        self._plane.protocol.data_received(b"".join(waiting))

    def abandon(self) -> None:
        """The connection is gone; `ControlPlane.close` tells uvicorn."""
        self._plane.turn = None

    def pause(self) -> None:
        self._plane.protocol.pause_writing()

    def resume(self) -> None:
        self._plane.protocol.resume_writing()

    def shutdown(self) -> None:
        """The server stops: close after this answer."""
        self._plane.protocol.shutdown()

    def stalled_seconds(self, now: float) -> float:
        """For how long nothing has come of a request that is not complete."""
        if self.is_received or self._fed != self._fed_seen:
            self._fed_seen, self._quiet_since = self._fed, now
        return now - self._quiet_since

    # -- from uvicorn

    def on_answered(self) -> None:
        """uvicorn has written the whole answer; what is left of the request is still read, and dropped."""
        self._is_answered = True
        if self.is_received:
            self._end()

    def _feed(self, data: bytes) -> None:
        if self._waiting is not None:
            self._waiting.append(data)
        else:
            self._plane.protocol.data_received(data)

    def _end(self) -> None:
        if self._plane.turn is self:
            self._plane.turn = None
            self._client.end_turn(keeps_alive=not self._client.transport.is_closing())


class _UvicornProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which says when an answer is complete and leaves idle connections to us."""

    def __init__(self, plane: ControlPlane, config: Config, state: ServerState, app_state: Any) -> None:
        super().__init__(config, state, app_state, asyncio.get_running_loop())
        self._plane = plane

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._unset_keepalive_if_required()
        if self._plane.turn is not None:
            self._plane.turn.on_answered()


class _TurnTransport(asyncio.Transport):
    """The client's transport as uvicorn's protocol sees it: it acts only while a control turn runs."""

    def __init__(self, plane: ControlPlane, client: SharedConnection) -> None:
        super().__init__()
        self._plane = plane
        self._client = client

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        if self._plane.turn is not None:
            self._client.transport.write(data)

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview[Any]]) -> None:
        self.write(b"".join(list_of_data))

    def close(self) -> None:
        turn = self._plane.turn
        if turn is not None and turn.is_received:
            self._client.transport.close()
        elif turn is not None:  # answered while the client still sends, as an upload that is too large
            self._client.linger()

    def abort(self) -> None:
        if self._plane.turn is not None:
            self._client.transport.abort()

    def is_closing(self) -> bool:
        return self._client.transport.is_closing()

    def pause_reading(self) -> None:
        self._client.pause_body()

    def resume_reading(self) -> None:
        self._client.resume_body()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._client.transport.get_extra_info(name, default)


def written_anew(method: bytes, url: bytes, is_http11: bool, headers: Headers) -> bytes:
    """The head of a request, from what the parser made of it."""
    lines = [b"%b %b HTTP/1.%d\r\n" % (method, url, is_http11)]
    lines += [b"%b: %b\r\n" % header for header in headers.items()]
    lines.append(b"\r\n")
    return b"".join(lines)


def without_upgrade(headers: Headers) -> Headers:
    """The headers of a request whose offer to upgrade is ignored."""
    kept: Headers = {}
    for name, value in headers.items():
        if name in (b"upgrade", b"http2-settings"):
            continue
        if name == b"connection":
            tokens = [token.strip() for token in value.split(b",")]
            value = b", ".join(
                token for token in tokens if token.lower() not in (b"upgrade", b"http2-settings")
            )
        kept[name] = value
    return kept


def hand_over(
    transport: asyncio.Transport, data: bytes, config: Config, state: ServerState, app_state: dict[str, Any]
) -> None:
    """Give a connection to uvicorn for good; its next request is `data`."""
    protocol = HttpToolsProtocol(config, state, app_state, asyncio.get_running_loop())
    protocol.connection_made(transport)
    transport.set_protocol(protocol)
    protocol.data_received(data)
