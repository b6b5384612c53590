"""Medians, ratios, the table, and `build/bench/gateway.json`."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import orjson
from rich.console import Console
from rich.table import Table

from loadtest.benchmarks.gateway.contenders import DIRECT, OURS, ROUTERS
from loadtest.benchmarks.gateway.measure import FIGURES, RoundFigures

#: Goals of ours against the better of the two Rust routers.
JSON_GOAL: Final = 0.7
CHUNK_GOAL: Final = 1.15


@dataclass(slots=True)
class ContenderResult:
    """All rounds of one contender, or why there are none."""

    name: str
    missing: str | None = None
    rounds: list[RoundFigures] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def values(self, figure: str) -> list[float]:
        return [value for each in self.rounds if (value := getattr(each, figure)) is not None]

    def median(self, figure: str) -> float | None:
        values = self.values(figure)
        return statistics.median(values) if values else None


def ratio_to_best_router(results: Mapping[str, ContenderResult], figure: str) -> float | None:
    """Ours over the cheaper Rust router, the median of the rounds' own ratios (rounds are interleaved)."""
    ours = results.get(OURS)
    routers = [results[name] for name in ROUTERS if name in results and results[name].median(figure)]
    if ours is None or not routers:
        return None
    best = min(routers, key=lambda router: router.median(figure) or float("inf"))
    pairs = [
        (getattr(mine, figure), getattr(theirs, figure))
        for mine, theirs in zip(ours.rounds, best.rounds, strict=False)
    ]
    ratios = [mine / theirs for mine, theirs in pairs if mine is not None and theirs]
    return round(statistics.median(ratios), 3) if ratios else None


def added_latency(results: Mapping[str, ContenderResult], name: str, figure: str) -> float | None:
    """Median over the rounds of this contender's latency less the direct connection's in the same round."""
    pairs = zip(results[name].rounds, results[DIRECT].rounds, strict=False) if DIRECT in results else ()
    added = [
        getattr(mine, figure) - getattr(direct, figure)
        for mine, direct in pairs
        if getattr(mine, figure) is not None and getattr(direct, figure) is not None
    ]
    return statistics.median(added) if added else None


def write_json(path: Path, results: Mapping[str, ContenderResult], options: Mapping[str, object]) -> None:
    """Everything that was measured, so that the table can be made again from it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "json_request_vs_best_rust": ratio_to_best_router(results, "json_small_cpu_us"),
        "paced_chunk_vs_best_rust": ratio_to_best_router(results, "paced_chunk_cpu_us"),
        "json_request_32k_vs_best_rust": ratio_to_best_router(results, "json_large_cpu_us"),
        "burst_chunk_vs_best_rust": ratio_to_best_router(results, "burst_chunk_cpu_us"),
        "goals": {"json_request_vs_best_rust": JSON_GOAL, "paced_chunk_vs_best_rust": CHUNK_GOAL},
        "machine": {"cores": os.cpu_count(), "kernel": platform.release(), "processor": _processor()},
        "options": dict(options),
        "contenders": {
            result.name: {
                "missing": result.missing,
                "errors": result.errors,
                "median": {name: result.median(name) for name in FIGURES},
                "rounds": [asdict(each) for each in result.rounds],
            }
            for result in results.values()
        },
    }
    path.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2))


def print_table(console: Console, results: Mapping[str, ContenderResult]) -> None:
    """One line a contender; CPU is of the gateway's whole process tree, on one core."""
    table = Table(title="CPU a request and a streamed chunk (µs), medians of the rounds")
    table.add_column("gateway")
    for heading in ("1 KB", "32 KB", "paced", "burst", "req/s", "+p50 µs", "+p99 µs", "MiB"):
        table.add_column(heading, justify="right")
    for name, result in results.items():
        if result.missing is not None:
            table.add_row(name, f"missing: {result.missing}", *[""] * 7)
            continue
        latencies = [added_latency(results, name, figure) for figure in ("latency_p50_us", "latency_p99_us")]
        cells: list[float | None] = [result.median(figure) for figure in FIGURES[:5]]
        cells += [*latencies, result.median("resident_mib")]
        table.add_row(name, *_formatted(cells))
    console.print(table)
    for result in results.values():
        for error in result.errors[:3]:
            console.print(f"[red]{result.name}: {error}")
    _print_goal(console, "JSON request", ratio_to_best_router(results, "json_small_cpu_us"), JSON_GOAL)
    _print_goal(console, "paced chunk", ratio_to_best_router(results, "paced_chunk_cpu_us"), CHUNK_GOAL)


def _print_goal(console: Console, what: str, ratio: float | None, goal: float) -> None:
    if ratio is None:
        console.print(f"{what}: loraway or every Rust router is missing, so there is no ratio.")
        return
    verdict = "[green]met" if ratio <= goal else "[red]missed"
    console.print(f"{what}: {ratio:.2f}x of the better Rust router; goal at most {goal}x: {verdict}")


def _formatted(cells: Sequence[float | None]) -> list[str]:
    digits = (1, 1, 1, 1, 0, 0, 0, 0)
    return ["-" if cell is None else f"{cell:,.{n}f}" for cell, n in zip(cells, digits, strict=True)]


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
