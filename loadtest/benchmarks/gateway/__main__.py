"""Runs the rounds: `python -m loadtest.benchmarks.gateway [--quick] [--rounds N] [--only NAME] ...`."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Final

import uvloop
from rich.console import Console

from loadtest.benchmarks.gateway.contenders import (
    STARTERS,
    Contender,
    Missing,
    Place,
)
from loadtest.benchmarks.gateway.measure import measure_round, wait_until_ready
from loadtest.benchmarks.gateway.processes import PinnedProcess, free_port
from loadtest.benchmarks.gateway.report import ContenderResult, print_table, write_json

LOAD_CORE: Final = 1


def main() -> int:
    options = _options()
    if len(os.sched_getaffinity(0)) < 2:
        print("This benchmark needs two cores: one for the gateway, one for the load and the engine.")
        return 2
    os.sched_setaffinity(0, {LOAD_CORE})
    console = Console(width=max(110, Console().width))
    with tempfile.TemporaryDirectory(prefix="loraway-bench-") as work:
        results = uvloop.run(_run(options, Path(work), console))
    print_table(console, results)
    write_json(options.output, results, {"rounds": options.rounds, "seconds": options.seconds})
    console.print(f"Written to {options.output}")
    return 0


async def _run(options: argparse.Namespace, work: Path, console: Console) -> dict[str, ContenderResult]:
    names = [name for name in STARTERS if not options.only or name in options.only]
    results = {name: ContenderResult(name) for name in names}
    place = Place(free_port(), work, options.environment / "bin" / "python")
    engine_command = [sys.executable, "-m", "loadtest.benchmarks.gateway.fake_engine", str(place.engine_port)]
    engine = PinnedProcess(engine_command, LOAD_CORE, work / "engine.log")
    running: list[Contender] = []
    try:
        await wait_until_ready(STARTERS["direct"](place))
        for name in names:
            try:
                contender = STARTERS[name](place)
                running.append(contender)
                await wait_until_ready(contender)
            except Missing as reason:
                results[name].missing = str(reason)
                console.print(f"[yellow]{name} takes no part: {reason}")
        for number in range(options.rounds):
            await _round(number, options.seconds, running, results, console)
    finally:
        for contender in running:
            contender.stop()
        engine.stop()
    return results


async def _round(
    number: int,
    seconds: float,
    running: list[Contender],
    results: dict[str, ContenderResult],
    console: Console,
) -> None:
    """Every contender once; each round begins with another one, so that none is always the first."""
    start = number % len(running)
    for contender in running[start:] + running[:start]:
        result = results[contender.name]
        if result.missing is None:
            console.print(f"round {number + 1}: {contender.name}")
            result.rounds.append(await measure_round(contender, seconds, result.errors))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench-gateway", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds; medians are reported")
    parser.add_argument("--seconds", type=float, default=1.5, help="of each of a round's five loads")
    parser.add_argument("--quick", action="store_true", help="one round of half a second each")
    parser.add_argument("--only", action="append", choices=list(STARTERS), help="only this one (repeatable)")
    parser.add_argument("--environment", type=Path, default=Path(".venv-bench"), help="has the routers")
    parser.add_argument("--output", type=Path, default=Path("build/bench/gateway.json"))
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds = 1, 0.5
    return options


if __name__ == "__main__":
    sys.exit(main())
