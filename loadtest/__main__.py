"""`make loadtest`: a bounded Locust run against the running gateway; ends with Locust's table."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from loadtest.connection import NoGateway, find_connection

_STOP_SECONDS: Final = 30


def main() -> int:
    options = _options()
    try:
        connection = find_connection()
    except NoGateway as reason:
        print(reason, file=sys.stderr)
        return 2
    command = [
        *(sys.executable, "-m", "locust", "--headless", "--only-summary"),
        *("--locustfile", str(Path(__file__).with_name("locustfile.py"))),
        *("--host", connection.url),
        *("--users", str(options.users), "--spawn-rate", str(options.users)),
        *("--run-time", f"{options.seconds}s", "--stop-timeout", f"{_STOP_SECONDS}s"),
    ]
    # The key goes by the environment: a command line can be read by everyone on the machine.
    environment = {**os.environ, "LORAWAY_URL": connection.url, "LORAWAY_API_KEY": connection.api_key}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    if options.model:
        environment["LORAWAY_MODEL"] = options.model
    print(f"{options.users} users ask {connection.url} for {options.seconds} s ...", flush=True)
    return subprocess.run(command, env=environment, timeout=options.seconds + 2 * _STOP_SECONDS).returncode


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make loadtest", description=__doc__)
    parser.add_argument("--users", type=int, default=6, help="two in three chat, one in three streams")
    parser.add_argument("--seconds", type=int, default=20, help="how long they ask")
    parser.add_argument("--model", help="whom they ask; default: the first model the gateway lists")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
