"""`make loadtest` ends by itself, shows the first token's time, and fails when requests fail."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.stack import running_simulators, running_stack

ROOT = Path(__file__).parents[2]


def loadtest(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LORAWAY_")}
    return subprocess.run(
        [sys.executable, "-m", "loadtest", *options],
        cwd=ROOT,
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_run_prints_its_table_with_the_time_to_first_token(tmp_path: Path) -> None:
    with (
        running_simulators("vllm", inter_token_seconds=0.002) as engines,
        running_stack(tmp_path, engines) as stack,
    ):
        run = loadtest("--seconds", "6", LORAWAY_URL=stack.url, LORAWAY_API_KEY=stack.api_key)

    table = run.stdout + run.stderr
    assert run.returncode == 0, table
    for row in ("chat", "chat stream", "TTFT"):
        assert row in table
    assert stack.api_key not in table


def test_failing_requests_fail_the_run(tmp_path: Path) -> None:
    with running_simulators("vllm") as engines, running_stack(tmp_path, engines) as stack:
        run = loadtest("--seconds", "2", LORAWAY_URL=stack.url, LORAWAY_API_KEY="sk-wrong")

    assert run.returncode != 0
    assert "401" in run.stdout + run.stderr


def test_without_a_gateway_it_says_what_to_do(tmp_path: Path) -> None:
    run = loadtest(LORAWAY_DATA_DIR=str(tmp_path))

    assert run.returncode == 2
    assert "make run" in run.stderr
