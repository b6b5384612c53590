"""One round of one contender: five loads, and what each cost the gateway's processes."""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass, fields
from typing import Final

from loadtest.benchmarks.gateway.contenders import Contender, Missing
from loadtest.benchmarks.gateway.load import (
    BURST_STREAM_CHUNKS,
    JsonClient,
    LoadFigures,
    StreamClient,
    Target,
    chat_request,
    closed_loop,
    paced_streams,
    request_mix,
)

SMALL_PROMPT_BYTES: Final = 1_024
LARGE_PROMPT_BYTES: Final = 32_768
JSON_CONNECTIONS: Final = 64
BURST_CONNECTIONS: Final = 32
PACED_STREAMS: Final = 200
_READY_SECONDS: Final = 40.0


@dataclass(frozen=True, slots=True)
class RoundFigures:
    """Microseconds of CPU, requests a second, microseconds of latency, mebibytes; None: it did not manage."""

    json_small_cpu_us: float | None
    json_large_cpu_us: float | None
    paced_chunk_cpu_us: float | None
    burst_chunk_cpu_us: float | None
    requests_per_second: float | None
    latency_p50_us: float | None
    latency_p99_us: float | None
    resident_mib: float | None


FIGURES: Final = tuple(each.name for each in fields(RoundFigures))


@dataclass(slots=True)
class _Meter:
    """CPU seconds of a contender between two readings."""

    contender: Contender
    before: float = 0.0

    def read(self) -> float:
        return self.contender.process.cpu_seconds() if self.contender.process is not None else 0.0

    def start(self) -> None:
        self.before = self.read()

    def microseconds_each(self, count: int) -> float | None:
        if self.contender.process is None or count <= 0:
            return None
        return (self.read() - self.before) / count * 1e6


async def wait_until_ready(contender: Contender) -> None:
    """Until a chat request is answered; raises `Missing` with what the contender printed."""
    deadline = time.monotonic() + _READY_SECONDS
    last = ""
    while time.monotonic() < deadline:
        if contender.process is not None and not contender.process.is_running:
            raise Missing(f"it ended: {contender.process.log_tail()}")
        try:
            figures = await _json(contender.target, SMALL_PROMPT_BYTES, 1, 0.0)
        except OSError as error:
            last = str(error)
        else:
            if not figures.errors:
                return
            last = figures.first_error
        await asyncio.sleep(0.2)
    raise Missing(f"not ready after {_READY_SECONDS:.0f} s: {last[:300]}")


async def measure_round(contender: Contender, seconds: float, errors: list[str]) -> RoundFigures:
    """All loads one after the other; what went wrong is appended to `errors` and its figure is None."""
    meter = _Meter(contender)
    await _json(contender.target, SMALL_PROMPT_BYTES, JSON_CONNECTIONS, 0.2)  # warm

    meter.start()
    small = await _json(contender.target, SMALL_PROMPT_BYTES, JSON_CONNECTIONS, seconds)
    small_cpu = meter.microseconds_each(small.requests)
    meter.start()
    large = await _json(contender.target, LARGE_PROMPT_BYTES, JSON_CONNECTIONS, seconds)
    large_cpu = meter.microseconds_each(large.requests)

    paced, paced_cpu = await _paced(contender, meter, seconds)
    meter.start()
    burst = await _burst(contender.target, seconds)
    burst_cpu = meter.microseconds_each(burst.chunks)
    single = await _json(contender.target, SMALL_PROMPT_BYTES, 1, seconds)

    for load, figures in (("1 KB", small), ("32 KB", large), ("paced", paced), ("burst", burst)):
        if figures.errors:
            errors.append(f"{load}: {figures.errors} errors, first: {figures.first_error[:200]}")
    resident = contender.process.resident_bytes() / 2**20 if contender.process is not None else None
    latencies = sorted(single.latencies)
    return RoundFigures(
        json_small_cpu_us=None if small.errors else small_cpu,
        json_large_cpu_us=None if large.errors else large_cpu,
        paced_chunk_cpu_us=None if paced.errors else paced_cpu,
        burst_chunk_cpu_us=None if burst.errors else burst_cpu,
        requests_per_second=None if small.errors else small.requests / small.seconds,
        latency_p50_us=statistics.median(latencies) * 1e6 if latencies else None,
        latency_p99_us=latencies[int(len(latencies) * 0.99)] * 1e6 if latencies else None,
        resident_mib=resident,
    )


async def _json(target: Target, prompt_bytes: int, connections: int, seconds: float) -> LoadFigures:
    mix = request_mix(lambda store: chat_request(target, prompt_bytes, store=store))
    return await closed_loop(JsonClient, target, mix, connections, seconds)


async def _burst(target: Target, seconds: float) -> LoadFigures:
    mix = request_mix(
        lambda store: chat_request(target, SMALL_PROMPT_BYTES, f"burst:{BURST_STREAM_CHUNKS}", store)
    )
    return await closed_loop(StreamClient, target, mix, BURST_CONNECTIONS, seconds)


async def _paced(contender: Contender, meter: _Meter, seconds: float) -> tuple[LoadFigures, float | None]:
    seen = 0
    cost: float | None = None

    def at_window(figures: LoadFigures) -> None:
        nonlocal seen, cost
        if seen == 0:
            seen = figures.chunks
            meter.start()
        else:
            cost = meter.microseconds_each(figures.chunks - seen)

    figures = await paced_streams(contender.target, PACED_STREAMS, seconds, SMALL_PROMPT_BYTES, at_window)
    return figures, cost
