"""Which gateway a load test talks to, and as whom."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path


class NoGateway(Exception):
    """No gateway is known."""


@dataclass(frozen=True, slots=True)
class Connection:
    """A gateway's URL and a key for it."""

    url: str
    api_key: str


def find_connection() -> Connection:
    """From LORAWAY_URL and LORAWAY_API_KEY, else as the running gateway left it in its data folder.

    Raises `NoGateway` that says what to do.
    """
    url, api_key = os.environ.get("LORAWAY_URL"), os.environ.get("LORAWAY_API_KEY")
    if url and api_key:
        return Connection(url.rstrip("/"), api_key)
    file = Path(os.environ.get("LORAWAY_DATA_DIR", ".loraway")) / "run" / "connection.json"
    try:
        saved = json.loads(file.read_text())
    except FileNotFoundError:
        raise NoGateway(
            f"No gateway known (no {file}): start one with 'make run', "
            "or set LORAWAY_URL and LORAWAY_API_KEY."
        ) from None
    return Connection((url or saved["url"]).rstrip("/"), api_key or saved["api_key"])
