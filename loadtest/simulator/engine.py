"""A simulated engine as an async context manager: sockets, routes and faults around one replica."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, Self
from urllib.parse import unquote

import orjson

from loadtest.simulator.faults import Fault, FaultKind
from loadtest.simulator.http import Connection, Refusal, Request, Responder
from loadtest.simulator.replica import Replica
from loadtest.simulator.routes import Dialect, find_route
from loadtest.simulator.settings import ReplicaSettings, SimulatedKind
from loadtest.simulator.sglang import SglangDialect
from loadtest.simulator.vllm import VllmDialect

_DIALECTS: dict[SimulatedKind, Callable[[Replica], Dialect]] = {
    "vllm": VllmDialect,
    "sglang": SglangDialect,
}
#: Below this path it answers for itself, without a key.
CONTROL_PREFIX = "/_simulator/"


class SimulatedEngine:
    """One engine on 127.0.0.1 that takes no model, no memory and no start-up time.

    Its port stays its own while it refuses connections or is dead: the socket is bound, not listening.
    Faults are put in by `fault()`, or by `POST /_simulator/faults` at its own URL or at `control_url`, which
    goes on answering when the engine does not.
    """

    def __init__(self, kind: SimulatedKind = "vllm", *, port: int = 0, **settings: Any) -> None:
        self.kind = kind
        self.replica = Replica(ReplicaSettings(kind=kind, **settings))
        self._dialect = _DIALECTS[kind](self.replica)
        # Bound but never listening: keeps the port ours while nothing listens there.
        self._port_holder = _bound_socket(port)
        self._address: tuple[str, int] = self._port_holder.getsockname()
        self.url = f"http://127.0.0.1:{self._address[1]}"
        self._connections: set[Connection] = set()
        self._control_connections: set[Connection] = set()
        self._server: asyncio.Server | None = None
        self._control: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        await self._listen()
        loop = asyncio.get_running_loop()
        self._control = await loop.create_server(
            lambda: Connection(self._serve_control, self._control_connections), "127.0.0.1", 0
        )
        self.control_url = f"http://127.0.0.1:{self._control.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop_listening()
        if self._control is not None:
            self._control.close()
        self._port_holder.close()
        for connection in (*self._connections, *self._control_connections):
            connection.reset()

    async def fault(self, kind: FaultKind | str, **options: Any) -> None:
        """Put a fault in, or take all back with `clear`."""
        await self._apply(Fault.from_json({"fault": kind, **options}))

    # --- requests

    async def _serve(self, request: Request, responder: Responder) -> None:
        if request.path.startswith(CONTROL_PREFIX):
            await self._serve_control(request, responder)
            return
        await find_route(self._dialect, request)(request, responder)

    async def _serve_control(self, request: Request, responder: Responder) -> None:
        match request.method, request.path.removeprefix(CONTROL_PREFIX):
            case "GET", "stats":
                responder.send_json(200, self.replica.stats())
            case "POST", "faults":
                try:
                    fault = Fault.from_json(orjson.loads(request.body))
                except (ValueError, TypeError) as error:
                    raise Refusal(400, {"error": str(error)}) from None
                responder.send_json(200, {"fault": fault.fault})
                await self._apply(fault)
            case _:
                raise Refusal(404, {"error": f"not a path of the simulator's: {unquote(request.path)}"})

    # --- faults

    async def _apply(self, fault: Fault) -> None:
        match fault.fault:
            case FaultKind.REFUSE:
                self._stop_listening()
                for connection in tuple(self._connections):
                    connection.close_when_idle()
            case FaultKind.DIE:
                self._stop_listening()
                for connection in tuple(self._connections):
                    connection.reset()
                self.replica.adapters.clear()
            case FaultKind.RESTART | FaultKind.CLEAR:
                self.replica.faults.clear()
                if self._server is None:
                    await self._listen()
            case FaultKind.EVICT:
                self._dialect.lose_adapter(fault.adapter or "")
            case _:
                self.replica.faults.add(fault)

    async def _listen(self) -> None:
        self._server = await asyncio.get_running_loop().create_server(
            lambda: Connection(self._serve, self._connections),
            sock=_bound_socket(self._address[1]),
            backlog=1024,
        )

    def _stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None


def _bound_socket(port: int) -> socket.socket:
    raw = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    raw.bind(("127.0.0.1", port))
    return raw
