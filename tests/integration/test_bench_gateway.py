"""The gateway benchmark measures the real gateway, and reports whom it could not measure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="the benchmark pins to two cores")
def test_ours_is_measured_and_a_missing_router_is_reported(tmp_path: Path) -> None:
    output = tmp_path / "gateway.json"
    names = ("direct", "vllm-router", "loraway")
    run = subprocess.run(
        [
            *(sys.executable, "-m", "loadtest.benchmarks.gateway", "--quick", "--output", str(output)),
            *(option for name in names for option in ("--only", name)),
            *("--environment", str(tmp_path / "no-routers-here")),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )

    assert run.returncode == 0, run.stderr
    found = orjson.loads(output.read_bytes())["contenders"]
    assert found["loraway"]["missing"] is None
    assert found["loraway"]["errors"] == []
    assert all(value is not None for value in found["loraway"]["median"].values())
    assert "is not there" in found["vllm-router"]["missing"]
