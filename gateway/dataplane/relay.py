"""Passes one engine's answer on to the client: bytes through, framed anew, without a task.

A stream goes on as it comes, once its first event has been looked at. Any other answer is collected first, if
it is not large, and sent in one write: until then another replica can still be asked.
"""

from __future__ import annotations

import asyncio
from enum import Enum, auto
from time import perf_counter
from typing import Final, Protocol

from gateway.dataplane import sse
from gateway.dataplane.answers import LAST_CHUNK, STATUS_LINES
from gateway.dataplane.engine_errors import AttemptFailed, failed_attempt, openai_error
from gateway.dataplane.upstream import Headers, UpstreamConnection
from gateway.record import RequestRecord
from gateway.routing.snapshot import Target
from loraway.errors import EngineMismatch, LorawayError

#: An answer that is no stream is collected up to this size.
COLLECTED_BYTES: Final = 1024 * 1024
#: The engine's headers that go on to the client; all others end here.
_PASSED: Final = frozenset({b"content-type", b"content-encoding", b"cache-control", b"date", b"retry-after"})
#: Where an engine writes `model` in its answer: far in front of anything a client has a say in.
_MODEL_WITHIN: Final = 512


class _Mode(Enum):
    COLLECT = auto()  # keep the parts until the end
    FIRST_EVENT = auto()  # keep them until the first event is whole
    PASS = auto()  # the head has gone out


class ClientSide(Protocol):
    """Where the answer goes (`gateway.dataplane.protocol.ClientConnection`)."""

    def write(self, data: bytes) -> None:
        """Send bytes; `pause` and `resume` of the turn tell when the client is slow."""
        ...

    @property
    def is_write_paused(self) -> bool:
        """Whether the client has not taken what it was sent."""
        ...

    def create_future(self) -> asyncio.Future[None]:
        """A future of the connection's loop: asking which loop runs is a system call."""
        ...


class Relay:
    """One answer of one replica; `finished` resolves at its end, or fails with `AttemptFailed`."""

    # Found on the class until they are set: making a relay costs as little as possible.
    _upstream: UpstreamConnection | None = None
    _mode = _Mode.COLLECT
    _status = 0
    _passed_headers = b""
    _stored_header = b""
    _is_chunked = False
    #: The last two pieces of a stream; its usage is in them.
    _previous = b""
    _last = b""
    is_stream = False
    #: Whether the answer's head has gone to the client: then no other replica can be asked.
    has_started = False

    def __init__(
        self,
        client: ClientSide,
        record: RequestRecord,
        target: Target,
        own_headers: bytes,
        is_http11: bool,
        expected_model: bytes | None,
    ) -> None:
        self._client = client
        self._record = record
        self._target = target
        self._own_headers = own_headers
        self._is_http11 = is_http11
        self._expected_model = expected_model
        self._collected: list[bytes] = []
        #: Whether the answer is stored: then its last bytes wait for `release`.
        self._is_held = record.completion_id is not None
        if record.completion_id is not None:
            self._stored_header = b"x-loraway-completion-id: %b\r\n" % record.completion_id.encode()
        self.finished: asyncio.Future[None] = client.create_future()

    def start(self, upstream: UpstreamConnection, request: bytes) -> None:
        """Send the request; what comes back is passed on."""
        self._upstream = upstream
        upstream.send(self, request)
        if self._client.is_write_paused:
            upstream.pause()

    # -- from the client's side

    def pause(self) -> None:
        """The client is slow: read no more from the engine."""
        if self._upstream is not None:
            self._upstream.pause()

    def resume(self) -> None:
        """The client has caught up."""
        if self._upstream is not None:
            self._upstream.resume()

    def detach(self) -> None:
        """The client is gone, or another replica is asked: the engine's work is aborted."""
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.abort()

    def fail(self, error: LorawayError, *, may_retry: bool = False, is_lost: bool = False) -> None:
        """End the answer here."""
        self.detach()
        if not self.finished.done():
            self.finished.set_exception(AttemptFailed(error, may_retry=may_retry, is_lost=is_lost))

    # -- from the engine's side

    def on_answer_head(self, status: int, headers: Headers) -> None:
        self._status = status
        passed = b""
        for name, value in headers:
            if name in _PASSED:
                passed += b"%b: %b\r\n" % (name, value)
                if name == b"content-type" and status == 200:
                    self.is_stream = value.startswith(b"text/event-stream")
        self._passed_headers = passed
        if self.is_stream:
            self._mode = _Mode.FIRST_EVENT
            self._record.is_stream = True

    def on_answer_body(self, parts: list[bytes]) -> None:
        if self._mode is _Mode.PASS:
            self._pass(parts[0] if len(parts) == 1 else b"".join(parts), len(parts))
            return
        self._collected += parts
        if self._mode is _Mode.FIRST_EVENT:
            text = b"".join(self._collected)
            if sse.has_whole_event(text):
                self._start_stream(text)
        elif self._status < 400 and sum(map(len, self._collected)) > COLLECTED_BYTES and not self._is_held:
            self._start_large(b"".join(self._collected))

    def on_answer_end(self, parts: list[bytes]) -> None:
        self._upstream = None
        record = self._record
        if not record.first_byte:
            record.first_byte = perf_counter()
        if self._mode is _Mode.COLLECT:
            collected = self._collected + parts if self._collected else parts
            self._end_collected(collected[0] if len(collected) == 1 else b"".join(collected))
        else:
            if parts:
                self.on_answer_body(parts)
            if self._mode is _Mode.FIRST_EVENT:
                self._start_stream(b"".join(self._collected))
            if self.finished.done():
                return
            record.prompt_tokens, record.completion_tokens = sse.read_usage(self._previous + self._last)
            if not self._is_held and self._is_chunked:
                self._client.write(LAST_CHUNK)
        if not self.finished.done():
            self.finished.set_result(None)

    def on_answer_lost(self, error: LorawayError) -> None:
        has_answered = self._upstream is not None and self._upstream.has_answered
        self._upstream = None
        # Nothing has gone to the client before the head has, so another replica may be asked until then.
        self.fail(error, may_retry=not self.has_started, is_lost=not has_answered)

    # -- the end

    def release(self, is_stored: bool) -> None:
        """Send the bytes that were held; `is_stored` is what became of the record."""
        if self.is_stream:
            if not is_stored:
                self._write_chunk(sse.NOT_STORED)
            if self._last.endswith(sse.DONE):
                self._write_chunk(sse.DONE)
            if self._is_chunked:
                self._client.write(LAST_CHUNK)
        else:
            if not is_stored:
                self._stored_header = b"x-loraway-stored: false\r\n"
            self._write_whole(b"".join(self._collected))

    def break_off(self, error: LorawayError) -> bool:
        """Tell the client that a started answer ends here; False when only closing the connection can."""
        if not self.is_stream:
            return False
        self._write_chunk(sse.error_event(error))
        if self._is_chunked:
            self._client.write(LAST_CHUNK)
        return True

    # -- inside

    def _start_stream(self, text: bytes) -> None:
        """The first event is there: pass it on, or take what it says as the answer's status."""
        error = sse.first_error(text)
        if error is not None:
            self.is_stream = self._record.is_stream = False
            self._mode = _Mode.COLLECT
            self._answer_error(error.status, error.body)
            return
        if self._is_another_model(text):
            return
        self._record.first_byte = perf_counter()
        self._start_passing()
        self._collected = []
        self._pass(text, 1)

    def _start_large(self, body: bytes) -> None:
        if not self._is_another_model(body):
            self._record.first_byte = perf_counter()
            self._start_passing()
            self._collected = []
            self._pass(body, 1)

    def _start_passing(self) -> None:
        self._mode = _Mode.PASS
        self._is_chunked = self._is_http11
        self.has_started = True
        self._record.status = self._status
        framing = b"transfer-encoding: chunked\r\n\r\n" if self._is_chunked else b"\r\n"
        self._client.write(
            b"%b%b%b%b%b"
            % (
                STATUS_LINES[self._status],
                self._passed_headers,
                self._own_headers,
                self._stored_header,
                framing,
            )
        )

    def _pass(self, text: bytes, chunks: int) -> None:
        record = self._record
        record.chunks += chunks
        self._previous, self._last = self._last, text
        if self._is_held:
            assert record.response_parts is not None
            record.response_parts.append(text)
            if text.endswith(sse.DONE):
                text = text[: -len(sse.DONE)]
                if not text:
                    return
        self._client.write(b"%x\r\n%b\r\n" % (len(text), text) if self._is_chunked else text)

    def _write_chunk(self, text: bytes) -> None:
        self._client.write(b"%x\r\n%b\r\n" % (len(text), text) if self._is_chunked else text)

    def _end_collected(self, body: bytes) -> None:
        if self._status >= 400:
            self._answer_error(self._status, body)
            return
        if self._is_another_model(body):
            return
        record = self._record
        record.prompt_tokens, record.completion_tokens = sse.read_usage(body)
        record.status = self._status
        if self._is_held:
            record.response_parts = self._collected = [body]
        else:
            self._write_whole(body)

    def _answer_error(self, status: int, body: bytes) -> None:
        """An engine's error: the client's to see, or a failure of the attempt."""
        failed = failed_attempt(status, body, self._target)
        if failed is not None:
            self.fail(failed.error, may_retry=failed.may_retry)
            return
        self._is_held, self._stored_header = False, b""
        record = self._record
        record.status, record.error_code, record.completion_id = status, "engine_error", None
        self._status = status
        self._passed_headers = b"content-type: application/json\r\n"
        self._write_whole(openai_error(status, body))
        self.detach()
        self.finished.set_result(None)

    def _write_whole(self, body: bytes) -> None:
        self.has_started = True
        self._client.write(
            b"%b%b%b%bcontent-length: %d\r\n\r\n%b"
            % (
                STATUS_LINES[self._status],
                self._passed_headers,
                self._own_headers,
                self._stored_header,
                len(body),
                body,
            )
        )

    def _is_another_model(self, text: bytes) -> bool:
        """Whether the engine says that another model has answered than was asked; then the attempt fails."""
        expected = self._expected_model
        if expected is None:
            return False
        if text.find(expected, 0, _MODEL_WITHIN) >= 0:
            return False
        named = sse.named_model(text[:_MODEL_WITHIN])
        if named is None or named == expected:
            return False
        engine_name = self._target.engine_name
        if engine_name is not None and named == b'"%b"' % engine_name.encode():
            return False
        asked, got = expected.decode(), named.decode(errors="replace")
        self.fail(EngineMismatch(f"The engine answered as {got} where {asked} was asked."))
        return True
