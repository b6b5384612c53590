"""Prometheus figures of the gateway: counted on the hot path in plain numbers, written out on demand.

Each worker counts for itself, and its samples carry the label `worker`. A scrape reaches one worker; the
others' figures come from the small file that each writes into `<data_dir>/run/metrics/` every second, so they
are at most that old (`loraway_worker_snapshot_age_seconds` says how old). Workers share nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import time
from pathlib import Path
from typing import Final, Protocol

import orjson
from pydantic import TypeAdapter, ValidationError

from gateway.metrics_text import DURATION_BOUNDS, TTFT_BOUNDS, ModelFigures, WorkerFigures, render_figures
from gateway.record import RequestRecord

_LOG = logging.getLogger(__name__)

SNAPSHOT_SECONDS: Final = 1.0
#: A worker that has not written for this long is gone; its file no longer counts.
STALE_SECONDS: Final = 30.0
#: What `error_code` says where it was the engine that failed.
UPSTREAM_ERRORS: Final = frozenset(
    {"upstream_error", "upstream_timeout", "engine_unreachable", "engine_rejected", "engine_mismatch"}
)
_SNAPSHOT: Final = TypeAdapter(WorkerFigures)
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


class StoreCounts(Protocol):
    """What the traffic log counts (`gateway.traffic.TrafficLog`)."""

    waiting: int
    stored: int
    failed: int


class Metrics:
    """Counts one worker's requests. Written on the event loop only; `run_dir` None: no other workers."""

    def __init__(
        self, worker: int = 0, run_dir: Path | None = None, traffic: StoreCounts | None = None
    ) -> None:
        self.worker = worker
        self.in_flight = 0
        self._traffic = traffic
        self._models: dict[tuple[str | None, str], ModelFigures] = {}
        self._folder = run_dir / "metrics" if run_dir is not None else None
        self._task: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()

    def on_start(self) -> None:
        """A data-plane request has arrived."""
        self.in_flight += 1

    def on_end(self, record: RequestRecord) -> None:
        """It was answered, or its client went away (hot path: about two microseconds)."""
        self.in_flight -= 1
        model = self._models.get((record.project_id, record.target_name))
        if model is None:
            model = ModelFigures(record.project_id or "", record.target_name)
            self._models[record.project_id, record.target_name] = model
        statuses = model.statuses
        statuses[record.status] = statuses.get(record.status, 0) + 1
        model.duration.add(DURATION_BOUNDS, record.ended - record.started)
        if record.is_stream:
            model.chunks += record.chunks
            if record.first_byte:
                model.ttft.add(TTFT_BOUNDS, record.first_byte - record.started)
        model.prompt_tokens += record.prompt_tokens
        model.completion_tokens += record.completion_tokens
        model.retries += record.retries
        code = record.error_code
        if code is not None and code in UPSTREAM_ERRORS:
            model.upstream_errors[code] = model.upstream_errors.get(code, 0) + 1

    def render(self) -> bytes:
        """Prometheus text of this worker now and of the others as they last wrote. Reads small files."""
        return render_figures([self.figures(), *self._others()], time.time())

    def figures(self) -> WorkerFigures:
        """What this worker has counted until now."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        figures = WorkerFigures(
            worker=self.worker,
            read_at=time.time(),
            models=list(self._models.values()),
            in_flight=self.in_flight,
            cpu_seconds=usage.ru_utime + usage.ru_stime,
            resident_bytes=int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES,
        )
        if self._traffic is not None:
            figures.stored = self._traffic.stored
            figures.not_stored = self._traffic.failed
            figures.waiting_to_be_stored = self._traffic.waiting
        return figures

    async def start(self) -> None:
        """Begin to write this worker's file."""
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._task = asyncio.create_task(self._write_snapshots(), name="metrics-snapshots")

    async def stop(self) -> None:
        """Stop writing it and take it away."""
        task, self._task = self._task, None
        if task is not None:
            self._stopping.set()
            await task  # and with it a write under way, which would put the file back
            self._path(self.worker).unlink(missing_ok=True)

    async def _write_snapshots(self) -> None:
        while not self._stopping.is_set():
            try:
                # Not on the loop: a rename waits for the disk while the traffic log commits.
                await asyncio.to_thread(self._write_snapshot, self.figures())
            except OSError as error:
                _LOG.warning("metrics: this worker's figures could not be written: %s", error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SNAPSHOT_SECONDS):
                    await self._stopping.wait()

    def _write_snapshot(self, figures: WorkerFigures) -> None:
        path = self._path(self.worker)
        fresh = path.with_suffix(".new")
        fresh.write_bytes(orjson.dumps(figures, option=orjson.OPT_NON_STR_KEYS))
        fresh.replace(path)

    def _others(self) -> list[WorkerFigures]:
        if self._folder is None:
            return []
        others = []
        for path in self._folder.glob("worker-*.json"):
            if path == self._path(self.worker):
                continue
            try:
                figures = _SNAPSHOT.validate_json(path.read_bytes())
            except (OSError, ValidationError):  # just taken away, or written by another release
                continue
            if time.time() - figures.read_at <= STALE_SECONDS:
                others.append(figures)
        return others

    def _path(self, worker: int) -> Path:
        assert self._folder is not None
        return self._folder / f"worker-{worker}.json"
