"""Keep-alive connections to the replicas, one request at a time on each."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final, Protocol, cast

import httptools
import orjson

from engines.engine import wire_model
from gateway.dataplane.engine_errors import RETRY_AFTER_SECONDS
from gateway.routing.snapshot import Replica, Snapshot, Target
from loraway.errors import EngineUnreachable, LorawayError, UpstreamFailed
from loraway.ids import ReplicaId

Headers = list[tuple[bytes, bytes]]

#: More idle connections to one replica than this are closed.
_MAX_IDLE: Final = 1024
#: More names than this are not remembered for one replica.
_MAX_MODELS: Final = 10_000
#: The answers that have no body whatever their headers say.
_BODILESS: Final = frozenset({204, 304})


class AnswerReceiver(Protocol):
    """Takes one answer as it arrives. Nothing is called after `on_answer_end` or `on_answer_lost`."""

    def on_answer_head(self, status: int, headers: Headers) -> None:
        """The status and the headers, names in lower case."""
        ...

    def on_answer_body(self, parts: list[bytes]) -> None:
        """Parts of the body, without their framing."""
        ...

    def on_answer_end(self, parts: list[bytes]) -> None:
        """These parts are the body's last; the connection is no longer this request's."""
        ...

    def on_answer_lost(self, error: LorawayError) -> None:
        """The connection broke or its bytes are not HTTP."""
        ...


class UpstreamConnection(asyncio.Protocol):
    """One connection to a replica; one request's from `send` until its answer's end, else idle."""

    def __init__(self, pool: ReplicaPool) -> None:
        self._pool = pool
        self._receiver: AnswerReceiver | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._parts: list[bytes] = []
        self._headers: Headers = []
        self._is_complete = False
        self._is_reusable = False
        self._is_paused = False
        self._is_interim = False
        self.transport: asyncio.Transport
        #: Whether it has carried an answer before: then the engine may have closed it at any moment.
        self.is_reused = False
        #: Whether any byte of the present answer has come.
        self.has_answered = False

    # -- for the exchange

    def send(self, receiver: AnswerReceiver, request: bytes) -> None:
        """Send a whole request; its answer goes to the receiver."""
        self._receiver = receiver
        self._is_complete = self.has_answered = False
        self.transport.write(request)

    def abort(self) -> None:
        """Give up the answer: the engine sees a disconnect and stops generating."""
        self._receiver = None
        self.transport.abort()

    def pause(self) -> None:
        """Read no more until the client has taken what it was sent."""
        if not self._is_paused and not self.transport.is_closing():
            self._is_paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._is_paused:
            self._is_paused = False
            if not self.transport.is_closing():
                self.transport.resume_reading()

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        receiver = self._receiver
        if receiver is None:  # nobody asked: whatever this is, it must not become an answer
            self.transport.abort()
            return
        self.has_answered = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._break(receiver, error)
            return
        if self._receiver is None:  # given up while it took the head
            return
        if self._is_complete:
            parts, self._parts = self._parts, []
            self._receiver = None
            self._release()
            receiver.on_answer_end(parts)
        elif self._parts:
            parts, self._parts = self._parts, []
            receiver.on_answer_body(parts)

    def connection_lost(self, exc: Exception | None) -> None:
        receiver, self._receiver = self._receiver, None
        del self._parser  # it holds our callbacks: the two would wait for the garbage collector
        if receiver is None:
            self._pool.forget(self)
        elif self.has_answered:
            receiver.on_answer_lost(UpstreamFailed("The engine closed the connection in its answer."))
        else:
            message = "The engine went away before it answered; try again."
            receiver.on_answer_lost(EngineUnreachable(message, retry_after_seconds=RETRY_AFTER_SECONDS))

    # -- httptools

    def on_message_begin(self) -> None:
        if self._is_complete:  # a second answer to one request
            raise UpstreamFailed("The engine sent more than one answer.")
        self._headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        assert self._receiver is not None
        status = self._parser.get_status_code()
        self._is_interim = status < 200
        if self._is_interim:
            return
        headers, self._headers = self._headers, []
        # llhttp keeps a connection alive only if it can tell the answer's end: mostly nothing else is asked.
        if not self._parser.should_keep_alive() and status not in _BODILESS and not _is_framed(headers):
            raise UpstreamFailed("The engine's answer has neither a length nor chunks.")
        self._receiver.on_answer_head(status, headers)

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)

    def on_message_complete(self) -> None:
        if not self._is_interim:
            # Asked now: once the message is over, llhttp says no.
            self._is_reusable = self._parser.should_keep_alive()
            self._is_complete = True

    def _break(self, receiver: AnswerReceiver, error: httptools.HttpParserError) -> None:
        cause = error.__context__
        self._receiver = None
        self.transport.abort()
        receiver.on_answer_lost(
            cause
            if isinstance(cause, LorawayError)
            else UpstreamFailed(f"The engine's answer is not valid HTTP: {error}.")
        )

    def _release(self) -> None:
        self.resume()
        self.is_reused = True
        if self._is_reusable and not self.transport.is_closing():
            self._pool.take_back(self)
        else:
            self.transport.close()


class ReplicaPool:
    """The connections to one replica; owns the idle ones."""

    def __init__(self, replica: Replica, engine_key: str | None) -> None:
        self.replica_id = replica.replica_id
        self.address = (replica.host, replica.port)
        key = f"authorization: Bearer {engine_key}\r\n" if engine_key else ""
        #: What every request's head has after its first line.
        self.head = (
            f" HTTP/1.1\r\nhost: {replica.host}:{replica.port}\r\n{key}"
            "content-type: application/json\r\naccept: application/json, text/event-stream\r\n"
        ).encode("latin-1")
        self._kind = replica.kind
        self._models: dict[Target, bytes] = {}
        self._idle: list[UpstreamConnection] = []
        self._is_closed = False

    def model_for(self, target: Target) -> bytes:
        """What goes into `model` for this target, as JSON text."""
        model = self._models.get(target)
        if model is None:
            if len(self._models) >= _MAX_MODELS:
                self._models.clear()
            model = orjson.dumps(wire_model(self._kind, target.base_model, target.engine_name))
            self._models[target] = model
        return model

    def take_idle(self) -> UpstreamConnection | None:
        """The connection that was used last, or None where all are busy."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.transport.is_closing():
                return connection
        return None

    async def connect(self, timeout_seconds: float) -> UpstreamConnection:
        """A fresh connection; raises EngineUnreachable."""
        host, port = self.address
        try:
            async with asyncio.timeout(timeout_seconds):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: UpstreamConnection(self), host, port
                )
        except TimeoutError:
            message = f"The engine did not take a connection within {timeout_seconds:g} seconds."
            raise EngineUnreachable(message, retry_after_seconds=RETRY_AFTER_SECONDS) from None
        except OSError as error:
            message = f"The engine cannot be reached ({error.strerror or error})."
            raise EngineUnreachable(message, retry_after_seconds=RETRY_AFTER_SECONDS) from None
        return connection

    def take_back(self, connection: UpstreamConnection) -> None:
        """Keep a connection whose answer is complete."""
        if self._is_closed or len(self._idle) >= _MAX_IDLE:
            connection.transport.close()
        else:
            self._idle.append(connection)

    def forget(self, connection: UpstreamConnection) -> None:
        """The engine has closed an idle connection."""
        if connection in self._idle:
            self._idle.remove(connection)

    def close(self) -> None:
        """Close what is idle, and later what is not yet."""
        self._is_closed = True
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.transport.close()

    @property
    def idle_count(self) -> int:
        return len(self._idle)


class Upstreams:
    """A pool for each replica of the snapshot, and how many of this worker's requests run on each."""

    def __init__(self, engine_key: str | None, remote_key: str | None = None) -> None:
        #: What our own engines take; `remote_key` is for OpenAI-compatible servers that are not ours.
        self._engine_key = engine_key
        self._remote_key = remote_key
        self._pools: dict[ReplicaId, ReplicaPool] = {}
        self._revision = -1
        self.in_flight: dict[ReplicaId, int] = {}

    def pool(self, replica: Replica, snapshot: Snapshot) -> ReplicaPool:
        """The replica's connections."""
        if snapshot.revision != self._revision:
            self._revision = snapshot.revision
            self._drop_gone(replica for group in snapshot.replicas.values() for replica in group)
        pool = self._pools.get(replica.replica_id)
        if pool is None:
            key = self._remote_key if replica.kind == "openai" else self._engine_key
            pool = self._pools[replica.replica_id] = ReplicaPool(replica, key)
            self.in_flight.setdefault(replica.replica_id, 0)
        return pool

    def close(self) -> None:
        """Close every connection that is idle."""
        for pool in self._pools.values():
            pool.close()
        self._pools.clear()

    def _drop_gone(self, replicas: Iterable[Replica]) -> None:
        addresses = {replica.replica_id: (replica.host, replica.port) for replica in replicas}
        for replica_id, pool in list(self._pools.items()):
            if addresses.get(replica_id) != pool.address:
                pool.close()
                del self._pools[replica_id]
                if not self.in_flight.get(replica_id):
                    self.in_flight.pop(replica_id, None)


def _is_framed(headers: Headers) -> bool:
    """Whether the end of the body can be known; llhttp refuses an answer that gives both ways."""
    return any(name in (b"content-length", b"transfer-encoding") for name, _ in headers)
