"""One simulated replica: who runs, who waits, what is broken, and the course of one generation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from loadtest.simulator.adapters import AdapterTable
from loadtest.simulator.faults import FaultKind, Faults
from loadtest.simulator.generation import Asked, Piece, answer_pieces, interleaved
from loadtest.simulator.http import Refusal, Responder
from loadtest.simulator.settings import ReplicaSettings

Pieces = Sequence[Piece]


@dataclass(slots=True)
class Counts:
    """What has happened since the start; a test reads it."""

    generations: int = 0
    #: Generations whose client went away.
    aborted: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    loads: int = 0
    unloads: int = 0
    #: The largest number of generations that ran at one time.
    most_running: int = 0


class Shapes(Protocol):
    """How a dialect writes a generation."""

    #: Whether the head of a stream goes out before its first token is there.
    sends_head_at_once: bool

    def whole(self, asked: Asked, choices: Sequence[Pieces]) -> dict[str, Any]:
        """The answer without streaming."""
        ...

    def opening(self, asked: Asked, choice: int) -> dict[str, Any] | None:
        """The chunk before a choice's first token."""
        ...

    def token(self, asked: Asked, piece: Piece, generated: int) -> dict[str, Any]:
        """The chunk of one token; `generated` counts it."""
        ...

    def closing(self, asked: Asked, choices: Sequence[Pieces]) -> list[dict[str, Any]]:
        """What follows the last token, before `[DONE]`."""
        ...

    def internal_error(self) -> Refusal:
        """A 500 as the engine answers it."""
        ...


class Replica:
    """State of one simulated engine process. Everything runs on one event loop; nothing else writes it."""

    def __init__(self, settings: ReplicaSettings) -> None:
        self.settings = settings
        self.adapters = AdapterTable(settings.max_loaded_adapters)
        self.faults = Faults()
        self.counts = Counts()
        self.running = 0
        self.waiting = 0
        self.running_by_adapter: dict[str, int] = {}
        self._slots = asyncio.Semaphore(settings.max_running)
        self._adapter_is_idle = asyncio.Condition()

    def stats(self) -> dict[str, Any]:
        """For `GET /_simulator/stats`."""
        return {
            **asdict(self.counts),
            "running": self.running,
            "waiting": self.waiting,
            "evictions": self.adapters.evictions,
            "adapters": {name: adapter.mark for name, adapter in self.adapters.resident.items()},
        }

    async def pause(self, seconds: float) -> None:
        """Let time pass as the engine's work does; other requests run meanwhile."""
        await asyncio.sleep(seconds * self.faults.slow_factor)

    async def wait_until_idle(self, adapter: str) -> None:
        """Until no request runs on this adapter."""
        async with self._adapter_is_idle:
            await self._adapter_is_idle.wait_for(lambda: not self.running_by_adapter.get(adapter))

    async def generate(self, asked: Asked, shapes: Shapes, responder: Responder) -> None:
        """Answer one generation, with the faults that are in force for it."""
        adapter = asked.adapter
        if self.faults.take(FaultKind.ERROR_500, adapter):
            raise shapes.internal_error()
        try:
            async with self._counted(adapter):
                await self._generate(asked, shapes, responder)
        except (asyncio.CancelledError, ConnectionResetError):
            self.counts.aborted += 1
            raise
        self.counts.generations += 1

    async def _generate(self, asked: Asked, shapes: Shapes, responder: Responder) -> None:
        if self.faults.take(FaultKind.HANG_BEFORE_FIRST_BYTE, asked.adapter):
            await asyncio.Event().wait()
        if asked.is_stream and shapes.sends_head_at_once:
            responder.start_stream()
        async with self._slot():
            choices = [answer_pieces(asked, choice) for choice in range(asked.choices)]
            self.counts.prompt_tokens += asked.prompt_tokens
            await self.pause(self.settings.ttft_seconds)
            if asked.is_stream:
                await self._stream(asked, choices, shapes, responder)
            else:
                await self._answer_whole(asked, choices, shapes, responder)

    async def _answer_whole(
        self, asked: Asked, choices: Sequence[Pieces], shapes: Shapes, responder: Responder
    ) -> None:
        steps = max((len(pieces) for pieces in choices), default=0)
        await self.pause(self.settings.inter_token_seconds * steps)
        self.counts.generated_tokens += sum(map(len, choices))
        responder.send_json(200, shapes.whole(asked, choices))

    async def _stream(
        self, asked: Asked, choices: Sequence[Pieces], shapes: Shapes, responder: Responder
    ) -> None:
        if not shapes.sends_head_at_once:
            responder.start_stream()
        hang = self.faults.take(FaultKind.HANG_MID_STREAM, asked.adapter)
        reset = self.faults.take(FaultKind.RESET_MID_CHUNK, asked.adapter)
        for choice in range(asked.choices):
            if (opening := shapes.opening(asked, choice)) is not None:
                await responder.send_event(opening)
        for generated, piece in enumerate(interleaved(choices), start=1):
            if hang is not None and generated > hang.after_tokens:
                await asyncio.Event().wait()
            chunk = shapes.token(asked, piece, generated)
            if reset is not None and generated > reset.after_tokens:
                await responder.break_event(chunk)
                raise ConnectionResetError("a fault of the simulator")
            await responder.send_event(chunk)
            self.counts.generated_tokens += 1
            await self.pause(self.settings.inter_token_seconds)
        for chunk in shapes.closing(asked, choices):
            await responder.send_event(chunk)
        responder.end_stream()

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        """A place in the batch, after those who came before."""
        self.waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        self.counts.most_running = max(self.counts.most_running, self.running)
        try:
            yield
        finally:
            self.running -= 1
            self._slots.release()

    @asynccontextmanager
    async def _counted(self, adapter: str | None) -> AsyncIterator[None]:
        """The request counts as its adapter's, waiting or running."""
        if adapter is None:
            yield
            return
        self.running_by_adapter[adapter] = self.running_by_adapter.get(adapter, 0) + 1
        try:
            yield
        finally:
            self.running_by_adapter[adapter] -= 1
            if self.running_by_adapter[adapter] == 0:
                async with self._adapter_is_idle:
                    self._adapter_is_idle.notify_all()
