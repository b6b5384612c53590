"""The client's side of the data plane, as uvicorn's `http=` setting takes it.

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

from uvicorn.config import Config
from uvicorn.server import ServerState

from gateway.dataplane.answers import CONTINUE, error_answer
from gateway.dataplane.control import ControlPlane, ControlTurn, hand_over
from gateway.dataplane.exchange import Exchange
from gateway.dataplane.half_close import HalfClose
from gateway.dataplane.plane import DataPlane
from gateway.dataplane.reading import RequestReader
from gateway.dataplane.request import Request, request_id_of
from loraway.errors import LorawayError, RequestTimedOut

#: How long a client may take to read a refusal while what it still sends is thrown away.
_LINGER_SECONDS: Final = 2.0
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
    """One client's connection; owns the order of its turns."""

    def __init__(
        self,
        plane: DataPlane,
        connections: set[ClientConnection],
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
    ) -> None:
        self._plane = plane
        self._connections = connections
        self._config = config
        self._state = server_state
        self._app_state = app_state
        self._loop = asyncio.get_running_loop()
        self._reader = RequestReader(self, plane.settings)
        self._control: ControlPlane | None = None
        self._half_close: HalfClose | None = None
        self._turn: Turn | None = None
        self._waiting: deque[Turn] = deque()
        self.transport: asyncio.Transport
        self.is_draining = False
        self.is_write_paused = False
        self._is_read_paused = False
        self._lingers_until = 0.0
        # What `check` saw last: a message or a turn has begun or ended when the count has moved.
        self._turns_ended = 0
        self._moves_seen = -1
        self._still_since = 0.0

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._connections.add(self)
        self._state.connections.add(cast(Any, self))

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)

    def eof_received(self) -> bool:
        """The client has ended its side; true keeps ours open, for the answers that it may still read."""
        turn = self._turn
        if not isinstance(turn, Exchange) or self._reader.is_receiving:
            return False
        if not HalfClose.can_watch(self.transport) or not turn.can_be_probed:
            return False
        self._reader.is_deaf = True
        self._half_close = HalfClose(self.transport, self.abort)
        self._half_close.start(nothing_answered=not turn.has_answered)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._reader.close()
        self._leave()
        if self._half_close is not None:
            self._half_close.stop()
        turn, self._turn = self._turn, None
        self._waiting.clear()
        if turn is not None:
            turn.abandon()
        if self._control is not None:
            self._control.close(exc)

    def pause_writing(self) -> None:
        self.is_write_paused = True
        if self._turn is not None:
            self._turn.pause()

    def resume_writing(self) -> None:
        self.is_write_paused = False
        if self._turn is not None:
            self._turn.resume()

    # -- the server

    def shutdown(self) -> None:
        """The server stops: finish what has begun, take nothing new."""
        self.is_draining = True
        if self._turn is None:
            self.transport.close()
        elif isinstance(self._turn, ControlTurn):
            self._turn.shutdown()

    def check(self, now: float) -> None:
        """Called now and then: enforces the limits on time."""
        limits, turn = self._plane.settings.timeouts, self._turn
        moves = self._reader.moves + self._turns_ended
        if self._lingers_until:
            if now > self._lingers_until:
                self.transport.abort()
        elif isinstance(turn, Exchange):
            turn.check(now)
        elif isinstance(turn, ControlTurn):
            if turn.stalled_seconds(now) > limits.request_arrival_seconds:
                self.transport.close()
        elif moves != self._moves_seen:
            self._moves_seen, self._still_since = moves, now
        elif self._reader.is_receiving:
            if now - self._still_since > limits.request_arrival_seconds:
                message = f"The request did not arrive within {limits.request_arrival_seconds:g} seconds."
                self._reader.refuse(RequestTimedOut(message))
        elif now - self._still_since > limits.idle_seconds:
            self.transport.close()

    # -- the reader

    def take_request(self, request: Request) -> None:
        self._enqueue(Exchange(self._plane, self, request))

    def take_control(self, head: bytes, *, is_chunked: bool) -> ControlTurn:
        if self._control is None:
            self._control = ControlPlane(self, self._config, self._state, self._app_state)
        turn = ControlTurn(self._control, self, head, is_chunked)
        self._enqueue(turn)
        return turn

    def take_upgrade(self, data: bytes) -> bool:
        if self._turn is not None:
            return False
        self._reader.is_deaf = True
        self._leave()
        hand_over(self.transport, data, self._config, self._state, self._app_state)
        return True

    def take_refusal(self, error: LorawayError, *, is_head: bool, control: ControlTurn | None) -> None:
        if control is not None and control in self._waiting:
            self._waiting.remove(control)
        elif control is not None:
            # The control plane has it already, perhaps answers it: that answer cannot be replaced.
            self.transport.close()
            return
        self._enqueue(Refusal(self, error, is_head))

    def pay_continue(self) -> None:
        """Ask for the body of a request that waits for that, once no other answer is under way."""
        if self._reader.owes_continue and self._turn is None:
            self._reader.owes_continue = False
            self.transport.write(CONTINUE)

    # -- the turns

    def write(self, data: bytes) -> None:
        """Send bytes of the present turn's answer."""
        self.transport.write(data)

    def create_future(self) -> asyncio.Future[None]:
        """A future of this connection's loop."""
        return self._loop.create_future()

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
        self._turns_ended += 1
        if self.transport.is_closing():
            return
        if self._waiting and keeps_alive:
            self._begin(self._waiting.popleft())
        elif not keeps_alive or self.is_draining or self._half_close is not None:
            self._reader.is_deaf = True
            self.transport.close()
            return
        if self._reader.owes_continue:
            self.pay_continue()
        if not self._waiting:
            self.resume_body()

    def abort(self) -> None:
        """Close so that the client sees that its answer is incomplete."""
        self._reader.is_deaf = True
        self.transport.abort()

    def linger(self) -> None:
        """Close, but first let the client read the answer: closing on unread data would destroy it."""
        self._reader.is_deaf = True
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

    def _leave(self) -> None:
        """This connection is not ours any more."""
        self._connections.discard(self)
        self._state.connections.discard(cast(Any, self))


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
