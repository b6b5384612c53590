"""What a worker counts, and how it looks as Prometheus text (exposition format 0.0.4)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

#: Upper bounds in seconds, as the GenAI conventions advise for these two.
DURATION_BOUNDS: Final = (
    0.01,
    0.02,
    0.04,
    0.08,
    0.16,
    0.32,
    0.64,
    1.28,
    2.56,
    5.12,
    10.24,
    20.48,
    40.96,
    81.92,
)
TTFT_BOUNDS: Final = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
)


@dataclass(slots=True)
class Histogram:
    """Counts by upper bound; `counts` has one more place, for what is above all bounds."""

    counts: list[int]
    total: float = 0.0

    @classmethod
    def empty(cls, bounds: Sequence[float]) -> Histogram:
        return cls([0] * (len(bounds) + 1))

    def add(self, bounds: Sequence[float], seconds: float) -> None:
        self.counts[bisect_left(bounds, seconds)] += 1
        self.total += seconds


@dataclass(slots=True)
class ModelFigures:
    """What one worker counted for one model name of one project."""

    project: str
    model: str
    statuses: dict[int, int] = field(default_factory=dict)
    upstream_errors: dict[str, int] = field(default_factory=dict)
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    chunks: int = 0
    duration: Histogram = field(default_factory=lambda: Histogram.empty(DURATION_BOUNDS))
    ttft: Histogram = field(default_factory=lambda: Histogram.empty(TTFT_BOUNDS))


@dataclass(slots=True)
class WorkerFigures:
    """Everything that one worker counted."""

    worker: int
    #: Wall clock at which these figures were read.
    read_at: float
    models: list[ModelFigures] = field(default_factory=list)
    in_flight: int = 0
    stored: int = 0
    not_stored: int = 0
    waiting_to_be_stored: int = 0
    cpu_seconds: float = 0.0
    resident_bytes: int = 0


@dataclass(frozen=True, slots=True)
class _Family:
    """One metric: its name, kind and help, and how its samples are read off a worker's figures."""

    name: str
    kind: str
    help: str
    samples: Callable[[WorkerFigures], Iterator[str]]


def render_figures(workers: Iterable[WorkerFigures], now: float) -> bytes:
    """Prometheus text of all workers; `now` is the wall clock, for the age of each worker's figures."""
    known = sorted(workers, key=lambda figures: figures.worker)
    lines: list[str] = []
    for family in _FAMILIES:
        lines.append(f"# HELP {family.name} {family.help}")
        lines.append(f"# TYPE {family.name} {family.kind}")
        for figures in known:
            lines.extend(family.samples(figures))
    name = "loraway_worker_snapshot_age_seconds"
    lines.append(f"# HELP {name} How old the figures of this worker are.")
    lines.append(f"# TYPE {name} gauge")
    lines += [f'{name}{{worker="{w.worker}"}} {max(0.0, now - w.read_at):.3f}' for w in known]
    return ("\n".join(lines) + "\n").encode()


def _labels(figures: WorkerFigures, model: ModelFigures) -> str:
    return f'project="{_escaped(model.project)}",model="{_escaped(model.model)}",worker="{figures.worker}"'


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _requests(figures: WorkerFigures) -> Iterator[str]:
    for model in figures.models:
        for status, count in sorted(model.statuses.items()):
            yield f'loraway_requests_total{{{_labels(figures, model)},status="{status}"}} {count}'


def _upstream_errors(figures: WorkerFigures) -> Iterator[str]:
    for model in figures.models:
        for code, count in sorted(model.upstream_errors.items()):
            labels = f'{_labels(figures, model)},code="{_escaped(code)}"'
            yield f"loraway_upstream_errors_total{{{labels}}} {count}"


def _tokens(figures: WorkerFigures) -> Iterator[str]:
    for model in figures.models:
        labels = _labels(figures, model)
        yield f'loraway_tokens_total{{{labels},type="input"}} {model.prompt_tokens}'
        yield f'loraway_tokens_total{{{labels},type="output"}} {model.completion_tokens}'


def _of_models(name: str, read: Callable[[ModelFigures], int]) -> Callable[[WorkerFigures], Iterator[str]]:
    def samples(figures: WorkerFigures) -> Iterator[str]:
        for model in figures.models:
            yield f"{name}{{{_labels(figures, model)}}} {read(model)}"

    return samples


def _of_worker(name: str, read: Callable[[WorkerFigures], float]) -> Callable[[WorkerFigures], Iterator[str]]:
    def samples(figures: WorkerFigures) -> Iterator[str]:
        yield f'{name}{{worker="{figures.worker}"}} {read(figures)}'

    return samples


def _histogram(
    name: str, bounds: Sequence[float], read: Callable[[ModelFigures], Histogram]
) -> Callable[[WorkerFigures], Iterator[str]]:
    def samples(figures: WorkerFigures) -> Iterator[str]:
        for model in figures.models:
            histogram, labels = read(model), _labels(figures, model)
            seen = 0
            if not any(histogram.counts):
                continue
            for bound, count in zip((*bounds, "+Inf"), histogram.counts, strict=True):
                seen += count
                yield f'{name}_bucket{{{labels},le="{bound}"}} {seen}'
            yield f"{name}_sum{{{labels}}} {histogram.total:.6f}"
            yield f"{name}_count{{{labels}}} {seen}"

    return samples


def _stored(figures: WorkerFigures) -> Iterator[str]:
    for outcome, count in (("stored", figures.stored), ("not_stored", figures.not_stored)):
        yield f'loraway_stored_total{{worker="{figures.worker}",outcome="{outcome}"}} {count}'


_FAMILIES: Final = (
    _Family("loraway_requests_total", "counter", "Requests answered, by HTTP status.", _requests),
    _Family(
        "loraway_request_duration_seconds",
        "histogram",
        "From the request's arrival to the answer's last byte.",
        _histogram("loraway_request_duration_seconds", DURATION_BOUNDS, lambda model: model.duration),
    ),
    _Family(
        "loraway_ttft_seconds",
        "histogram",
        "From a streamed request's arrival to the first byte of its answer.",
        _histogram("loraway_ttft_seconds", TTFT_BOUNDS, lambda model: model.ttft),
    ),
    _Family("loraway_tokens_total", "counter", "Tokens, as the engines counted them.", _tokens),
    _Family(
        "loraway_stream_chunks_total",
        "counter",
        "Pieces of streamed answers passed on.",
        _of_models("loraway_stream_chunks_total", lambda model: model.chunks),
    ),
    _Family("loraway_upstream_errors_total", "counter", "Requests that an engine failed.", _upstream_errors),
    _Family(
        "loraway_upstream_retries_total",
        "counter",
        "Attempts at another replica after a failed one.",
        _of_models("loraway_upstream_retries_total", lambda model: model.retries),
    ),
    _Family(
        "loraway_inflight_requests",
        "gauge",
        "Requests being answered now.",
        _of_worker("loraway_inflight_requests", lambda figures: figures.in_flight),
    ),
    _Family("loraway_stored_total", "counter", "Completions stored, or not, of those to be stored.", _stored),
    _Family(
        "loraway_storing",
        "gauge",
        "Completions waiting for the database.",
        _of_worker("loraway_storing", lambda figures: figures.waiting_to_be_stored),
    ),
    _Family(
        "process_cpu_seconds_total",
        "counter",
        "User and system CPU time of the worker.",
        _of_worker("process_cpu_seconds_total", lambda figures: round(figures.cpu_seconds, 3)),
    ),
    _Family(
        "process_resident_memory_bytes",
        "gauge",
        "Resident memory of the worker.",
        _of_worker("process_resident_memory_bytes", lambda figures: figures.resident_bytes),
    ),
)
