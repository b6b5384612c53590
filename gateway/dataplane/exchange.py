"""The story of one request: authenticate, resolve, route, forward, store, record."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Coroutine
from time import perf_counter, time
from typing import Any, Final, Protocol

from engines.engine import EngineKind
from gateway.dataplane.answers import error_answer
from gateway.dataplane.body import Asked, parse_body, with_model
from gateway.dataplane.engine_errors import RETRY_AFTER_SECONDS, AttemptFailed
from gateway.dataplane.plane import DataPlane
from gateway.dataplane.relay import ClientSide, Relay
from gateway.dataplane.request import CHAT_PATH, Request
from gateway.dataplane.upstream import ReplicaPool, UpstreamConnection
from gateway.keys import digest_of
from gateway.record import RequestRecord
from gateway.routing.snapshot import Key, Replica, Target
from loraway.errors import (
    AuthenticationFailed,
    LorawayError,
    ModelNotFound,
    NoReplicaReady,
    UpstreamTimedOut,
)
from loraway.ids import COMPLETION, ReplicaId, new_id
from loraway.telemetry import begin_trace

_LOG = logging.getLogger(__name__)

#: Replicas that are asked for one request before the client is told.
_MAX_ATTEMPTS: Final = 3
#: What the record says of a client that went away (nginx's status).
_CLIENT_GONE: Final = 499
#: Paths whose answers say which model has answered before anything that a client can write.
_NAMES_MODEL: Final = frozenset({CHAT_PATH, b"/v1/completions"})


class Client(ClientSide, Protocol):
    """The connection that the request came on."""

    @property
    def is_draining(self) -> bool:
        """Whether it closes after this answer."""
        ...

    def create_task(self, story: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run it; the server waits for it, and cancels it where it stops before the answer does."""
        ...

    def forget_task(self, task: asyncio.Task[None]) -> None:
        """It has nothing left to do."""
        ...

    def end_turn(self, *, keeps_alive: bool) -> None:
        """The answer is complete; without `keeps_alive` the connection closes once it was sent."""
        ...

    def abort(self) -> None:
        """Close the connection so that the client sees that its answer is incomplete."""
        ...


class Exchange:
    """One request and its answer; runs as one task, ends its turn on the connection exactly once."""

    # Found on the class until they are set: making an exchange costs as little as possible.
    _relay: Relay | None = None
    _trace_header = b""
    _sent_at = 0.0
    _chunks_seen = -1
    _quiet_since = 0.0
    _key: Key
    _asked: Asked
    _target: Target
    task: asyncio.Task[None]

    def __init__(self, plane: DataPlane, client: Client, request: Request) -> None:
        self._plane = plane
        self._client = client
        self._request = request
        self._keeps_alive = request.keeps_alive
        self.record = RequestRecord(
            request.request_id.decode(), request.path.decode(), time(), perf_counter()
        )

    # -- a turn on the connection

    def begin(self) -> None:
        """Start the task that tells the story."""
        self._plane.metrics.on_start()
        self.task = self._client.create_task(self._run())

    def abandon(self) -> None:
        """The client is gone: nobody waits for the answer."""
        if self._relay is not None:
            self._relay.detach()
        self.task.cancel()

    def pause(self) -> None:
        if self._relay is not None:
            self._relay.pause()

    def resume(self) -> None:
        if self._relay is not None:
            self._relay.resume()

    @property
    def has_answered(self) -> bool:
        """Whether any byte of the answer has gone to the client."""
        return self._relay is not None and self._relay.has_started

    @property
    def can_be_probed(self) -> bool:
        """Whether the client takes bytes now that it will ignore; HTTP/1.0 has no interim answers."""
        return self.has_answered or self._request.is_http11

    def check(self, now: float) -> None:
        """Called now and then: ends the request when one of its deadlines has passed."""
        relay = self._relay
        if relay is not None and not relay.finished.done():
            error = self._overdue(now)
            if error is not None:
                relay.fail(error)

    # -- the story

    async def _run(self) -> None:
        try:
            self._authenticate()
            self._resolve()
            await self._forward()
            if self.record.completion_id is not None:
                await self._store()
        except LorawayError as error:
            self._refuse(error)
        except asyncio.CancelledError:
            self.record.status = self.record.status or _CLIENT_GONE
            self.record.error_code = "client_disconnected"
            self._keeps_alive = False
        except Exception:  # noqa: BLE001 - the task's outermost edge: the client must be answered
            _LOG.exception("dataplane: request %s failed", self.record.request_id)
            self._refuse(LorawayError())
        finally:
            self._end()

    def _authenticate(self) -> None:
        headers = self._request.headers
        authorization = headers.get(b"authorization", b"")
        if authorization[:7] == b"Bearer " or authorization[:7].lower() == b"bearer ":
            secret = authorization[7:]
        else:
            secret = headers.get(b"x-api-key", b"")
        key = self._plane.snapshots.current.keys.get(digest_of(secret))
        if key is None:
            raise AuthenticationFailed()
        self._key = key
        self.record.project_id = key.project_id
        self.record.key_id = key.key_id

    def _resolve(self) -> None:
        """Which target the name stands for, once: a later move of the alias does not touch this request."""
        record, request = self.record, self._request
        self._asked = asked = parse_body(request.path, request.body)
        record.model = asked.model
        snapshot = self._plane.snapshots.current
        target = snapshot.resolve(self._key.project_id, asked.model)
        if target is None:
            raise ModelNotFound.near(asked.model, snapshot.names(self._key.project_id))
        self._target = target
        record.target_name = target.name
        record.base_model = target.base_model
        record.version_id = target.version_id
        record.adapter_rank = target.rank
        if asked.stores or (asked.stores is None and self._key.stores_by_default):
            record.completion_id = new_id(COMPLETION)
            record.request_body = request.body
            record.response_parts = []
        self._join_trace()

    def _join_trace(self) -> None:
        sent = self._request.headers.get(b"traceparent")
        if sent is None and random.random() >= self._plane.spans.sample_ratio:
            return
        trace = begin_trace(sent, 1.0)
        record = self.record
        record.trace_id, record.span_id = trace.trace_id, trace.span_id
        record.parent_span_id, record.is_sampled = trace.parent_span_id, trace.is_sampled
        self._trace_header = b"traceparent: %b\r\n" % trace.traceparent.encode()

    async def _forward(self) -> None:
        """Ask replicas until one answers; no other is asked once the client has seen a byte."""
        in_flight = self._plane.upstreams.in_flight
        tried: list[ReplicaId] = []
        failure: LorawayError | None = None
        is_fresh = False
        while True:
            replica = self._route(tried)
            if replica is None:
                if failure is not None:
                    raise failure
                replica = await self._route_cold()
            replica_id = replica.replica_id
            pool = self._plane.upstreams.pool(replica, self._plane.snapshots.current)
            in_flight[replica_id] += 1
            try:
                upstream = None if is_fresh else pool.take_idle()
                is_reused = upstream is not None
                if upstream is None:
                    upstream = await self._connect(pool)
                relay = self._start(replica, pool, upstream)
                await relay.finished
                return
            except AttemptFailed as failed:
                if self.has_answered:
                    self._break_off(failed.error)
                    return
                # The engine may have closed a kept connection at any moment: that says nothing about it.
                is_fresh = is_reused and failed.is_lost
                if is_fresh:
                    continue
                tried.append(replica_id)
                if not failed.may_retry or len(tried) >= _MAX_ATTEMPTS:
                    raise failed.error from None
                failure = failed.error
                self.record.retries += 1
            finally:
                in_flight[replica_id] -= 1

    def _route(self, tried: list[ReplicaId]) -> Replica | None:
        plane = self._plane
        return plane.policy.choose(plane.snapshots.current, self._target, plane.upstreams.in_flight, tried)

    async def _route_cold(self) -> Replica:
        """A replica for a target that none can answer now: its version is loaded first, if it is that."""
        plane, target = self._plane, self._target
        fleet = plane.snapshots.current.replicas.get(target.base_model, ())
        if target.version_id is not None and any(replica.is_ready for replica in fleet):
            await plane.cold.ensure(target)
            replica = self._route([])
            if replica is not None:
                return replica
        message = f"No replica that serves {target.name} is ready; try again."
        raise NoReplicaReady(message, retry_after_seconds=RETRY_AFTER_SECONDS)

    def _start(self, replica: Replica, pool: ReplicaPool, upstream: UpstreamConnection) -> Relay:
        """Send the request to a replica; its answer is passed on from here without this task."""
        record, target = self.record, self._target
        record.replica_id, record.engine = replica.replica_id, replica.kind
        model = pool.model_for(target)
        is_named = replica.kind != "openai" and self._request.path in _NAMES_MODEL
        self._relay = relay = Relay(
            self._client,
            record,
            target,
            self._own_headers(),
            self._request.is_http11,
            model if is_named else None,
        )
        self._sent_at = perf_counter()
        relay.start(upstream, self._engine_request(pool, replica.kind, model))
        return relay

    def _engine_request(self, pool: ReplicaPool, kind: EngineKind, model: bytes) -> bytes:
        """The request for this engine; the `id` of a stored answer is its completion's, as OpenAI has it."""
        completion_id, answer_id = self.record.completion_id, b""
        request_id = self._request.request_id
        if completion_id is not None and kind == "sglang":
            answer_id = b'"rid":"%b"' % completion_id.encode()
        elif completion_id is not None and kind == "vllm":  # answers as chatcmpl-REQUEST_ID
            request_id = completion_id.removeprefix(COMPLETION).encode()
        body = with_model(self._asked, model, answer_id)
        return b"POST %b%bx-request-id: %b\r\n%bcontent-length: %d\r\n\r\n%b" % (
            self._request.path,
            pool.head,
            request_id,
            self._trace_header,
            len(body),
            body,
        )

    async def _connect(self, pool: ReplicaPool) -> UpstreamConnection:
        try:
            return await pool.connect(self._plane.settings.timeouts.connect_seconds)
        except LorawayError as error:
            raise AttemptFailed(error, may_retry=True) from None

    def _own_headers(self) -> bytes:
        headers = b"x-request-id: %b\r\nx-loraway-model: %b\r\n" % (
            self._request.request_id,
            self._target.name.encode(),
        )
        if not self._request.keeps_alive or self._client.is_draining:
            headers += b"connection: close\r\n"
            self._keeps_alive = False
        return headers

    async def _store(self) -> None:
        """The last bytes of a stored answer go out when the record is safe."""
        assert self._relay is not None
        self.record.ended = perf_counter()
        try:
            await self._plane.traffic.store(self.record)
            is_stored = True
        except LorawayError as error:
            _LOG.warning("dataplane: %s was not stored: %s", self.record.completion_id, error)
            is_stored = False
        self._relay.release(is_stored)

    # -- the end

    def _break_off(self, error: LorawayError) -> None:
        assert self._relay is not None
        record = self.record
        record.error_code, record.completion_id = error.code, None
        if not self._relay.break_off(error):
            self._keeps_alive = False
            self._client.abort()

    def _refuse(self, error: LorawayError) -> None:
        record = self.record
        record.status, record.error_code, record.completion_id = error.status, error.code, None
        if self._client.is_draining or not self._request.is_http11:
            self._keeps_alive = False
        self._client.write(error_answer(error, self._request.request_id, closes=not self._keeps_alive))

    def _end(self) -> None:
        record = self.record
        record.ended = perf_counter()
        if self._relay is not None:
            self._relay.detach()
        self._plane.metrics.on_end(record)
        self._plane.spans.on_end(record)
        self._client.forget_task(self.task)
        self._client.end_turn(keeps_alive=self._keeps_alive)

    def _overdue(self, now: float) -> LorawayError | None:
        limits = self._plane.settings.timeouts
        record = self.record
        if now - record.started > limits.total_seconds:
            return UpstreamTimedOut(f"The request took longer than {limits.total_seconds:g} seconds.")
        if not record.first_byte:
            if now - self._sent_at > limits.first_byte_seconds:
                return UpstreamTimedOut(
                    f"The engine's first byte did not come within {limits.first_byte_seconds:g} seconds."
                )
        elif record.chunks != self._chunks_seen or self._client.is_write_paused:
            self._chunks_seen, self._quiet_since = record.chunks, now
        elif now - self._quiet_since > limits.between_chunks_seconds:
            return UpstreamTimedOut(
                f"The engine was silent for {limits.between_chunks_seconds:g} seconds in its stream."
            )
        return None
