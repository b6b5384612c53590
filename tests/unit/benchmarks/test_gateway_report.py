"""How rounds become the ratios that the goals are about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from loadtest.benchmarks.gateway.measure import FIGURES, RoundFigures
from loadtest.benchmarks.gateway.report import (
    ContenderResult,
    added_latency,
    ratio_to_best_router,
    write_json,
)

NOTHING = dict.fromkeys(FIGURES)


def rounds(name: str, **figures: list[float | None]) -> ContenderResult:
    count = max(len(values) for values in figures.values())
    made = [
        RoundFigures(**{**NOTHING, **{key: values[n] for key, values in figures.items()}})
        for n in range(count)
    ]
    return ContenderResult(name, rounds=made)


def results(*each: ContenderResult) -> dict[str, Any]:
    return {result.name: result for result in each}


def test_the_ratio_is_to_the_cheaper_router_round_by_round() -> None:
    measured = results(
        rounds("loraway", json_small_cpu_us=[30.0, 60.0, 33.0]),
        rounds("vllm-router", json_small_cpu_us=[60.0, 120.0, 60.0]),
        rounds("sglang-router", json_small_cpu_us=[130.0, 130.0, 130.0]),
    )

    assert ratio_to_best_router(measured, "json_small_cpu_us") == 0.5


def test_a_round_that_failed_does_not_count() -> None:
    measured = results(
        rounds("loraway", json_small_cpu_us=[None, 40.0]),
        rounds("vllm-router", json_small_cpu_us=[10.0, 80.0]),
    )

    assert ratio_to_best_router(measured, "json_small_cpu_us") == 0.5


def test_without_a_router_or_without_ours_there_is_no_ratio() -> None:
    ours = rounds("loraway", json_small_cpu_us=[30.0])
    router = rounds("vllm-router", json_small_cpu_us=[60.0])

    assert ratio_to_best_router(results(ours), "json_small_cpu_us") is None
    assert ratio_to_best_router(results(router), "json_small_cpu_us") is None
    missing = ContenderResult("vllm-router", missing="not installed")
    assert ratio_to_best_router(results(ours, missing), "json_small_cpu_us") is None


def test_added_latency_is_taken_from_the_direct_connection_of_the_same_round() -> None:
    measured = results(
        rounds("direct", latency_p50_us=[100.0, 300.0, 110.0]),
        rounds("nginx", latency_p50_us=[150.0, 340.0, 160.0]),
    )

    assert added_latency(measured, "nginx", "latency_p50_us") == 50.0


def test_the_file_holds_the_two_figures_and_who_was_missing(tmp_path: Path) -> None:
    measured = results(
        rounds("loraway", json_small_cpu_us=[30.0], paced_chunk_cpu_us=[21.0]),
        rounds("vllm-router", json_small_cpu_us=[60.0], paced_chunk_cpu_us=[20.0]),
        ContenderResult("nginx", missing="not installed"),
    )

    write_json(tmp_path / "bench" / "gateway.json", measured, {"rounds": 1})

    written = orjson.loads((tmp_path / "bench" / "gateway.json").read_bytes())
    assert written["json_request_vs_best_rust"] == 0.5
    assert written["paced_chunk_vs_best_rust"] == 1.05
    assert written["contenders"]["nginx"]["missing"] == "not installed"
