"""The command line's connection to a gateway: where it is, which key, and readable errors."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import httpx
import typer

from loraway.settings import Settings


@dataclass(frozen=True, slots=True)
class Connection:
    """A gateway's URL and a key for it."""

    url: str
    api_key: str

    @classmethod
    def find(cls, settings: Settings) -> Connection:
        """From LORAWAY_URL and LORAWAY_API_KEY, else as `loraway up` left it in the data folder."""
        url, api_key = os.environ.get("LORAWAY_URL"), os.environ.get("LORAWAY_API_KEY")
        if url and api_key:
            return cls(url.rstrip("/"), api_key)
        file = connection_file(settings)
        if not file.exists():
            fail(
                f"No gateway known (no {file}): start one with 'loraway up', "
                "or set LORAWAY_URL and LORAWAY_API_KEY."
            )
        saved = json.loads(file.read_text())
        return cls(url or saved["url"], api_key or saved["api_key"])

    def save(self, settings: Settings) -> None:
        """Leave it for other commands; only this user may read it."""
        file = connection_file(settings)
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            json.dump({"url": self.url, "api_key": self.api_key}, stream)


def connection_file(settings: Settings) -> Path:
    """Where `loraway up` leaves the URL and the key of its gateway."""
    return settings.data_dir / "run" / "connection.json"


class GatewayClient:
    """Calls the gateway's public HTTP API; ends the command with the API's own message on an error."""

    def __init__(self, settings: Settings) -> None:
        connection = Connection.find(settings)
        self._http = httpx.Client(
            base_url=connection.url,
            headers={"authorization": f"Bearer {connection.api_key}"},
            timeout=httpx.Timeout(300, connect=5),
        )

    def get(self, path: str, **query: Any) -> dict[str, Any]:
        return self._call("GET", path, params={k: v for k, v in query.items() if v is not None})

    def post(self, path: str, body: Any = None) -> dict[str, Any]:
        return self._call("POST", path, json=body)

    def upload(self, path: str, file: Path, purpose: str) -> dict[str, Any]:
        with file.open("rb") as stream:
            return self._call("POST", path, files={"file": (file.name, stream)}, data={"purpose": purpose})

    def stream(self, path: str, body: Any) -> Iterator[dict[str, Any]]:
        """The events of a streamed answer."""
        try:
            with self._http.stream("POST", path, json=body) as response:
                if response.status_code >= 400:
                    response.read()
                    fail(_message(response))
                for line in response.iter_lines():
                    if line.startswith("data: ") and line != "data: [DONE]":
                        yield json.loads(line[6:])
        except httpx.TransportError as error:
            fail(f"{self._http.base_url}: {error}")

    def _call(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        try:
            response = self._http.request(method, path, **arguments)
        except httpx.TransportError as error:
            fail(f"{self._http.base_url} does not answer ({error}). Is 'loraway up' running?")
        if response.status_code >= 400:
            fail(_message(response))
        answer: dict[str, Any] = response.json()
        return answer


def fail(message: str) -> NoReturn:
    """End the command with a message and status 1."""
    typer.secho(message, fg="red", err=True)
    raise typer.Exit(1)


def _message(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status_code} from {response.url}"
