"""Asks the controller to load a version or to look for work; used by gateway workers and the trainer."""

from __future__ import annotations

import json
import logging

import httpx

from loraway.errors import (
    AdapterNotLoaded,
    Conflict,
    EngineMismatch,
    EngineRejected,
    EngineUnreachable,
    LorawayError,
    NoReplicaReady,
    NotFound,
    Unavailable,
)
from loraway.ids import VersionId
from loraway.secrets import read_or_create_secret
from loraway.settings import Settings

_log = logging.getLogger(__name__)

_RETRY_SECONDS = 2
_WAKE_SECONDS = 2.0
#: What the controller may answer, by code; anything else is `Unavailable`.
_ERRORS: dict[str, type[LorawayError]] = {
    error.code: error
    for error in (
        NotFound,
        Conflict,
        EngineRejected,
        EngineMismatch,
        NoReplicaReady,
        AdapterNotLoaded,
        EngineUnreachable,
    )
}


class ControllerClient:
    """One keep-alive client; `close` lets go of its connections."""

    def __init__(self, url: str, internal_key: str) -> None:
        self._client = httpx.AsyncClient(
            base_url=url, headers={"authorization": f"Bearer {internal_key}"}, trust_env=False
        )

    @classmethod
    def from_settings(cls, settings: Settings) -> ControllerClient:
        """The client for this deployment's controller."""
        url = f"http://{settings.controller.host}:{settings.controller.port}"
        return cls(url, read_or_create_secret(settings, "internal"))

    async def load(self, version_id: VersionId, timeout_seconds: float = 120.0) -> None:
        """Returns once the version is loaded and proved on at least one replica.

        Raises the controller's error: NotFound, Conflict, `EngineRejected`, `EngineMismatch`, `Unavailable`;
        `AdapterNotLoaded` when the controller cannot be reached or does not answer in time.
        """
        path = f"/internal/versions/{version_id}/load"
        try:
            response = await self._client.post(path, timeout=timeout_seconds)
        except httpx.TransportError as error:
            raise AdapterNotLoaded(
                "The model is not loaded at the moment and cannot be loaded now; try again.",
                retry_after_seconds=_RETRY_SECONDS,
            ) from error
        if response.status_code != 200:
            raise _error_of(response)

    async def wake(self) -> None:
        """Have the controller look for work now; it does by itself a moment later, so failing is no error."""
        try:
            await self._client.post("/internal/wake", timeout=_WAKE_SECONDS)
        except httpx.TransportError as error:
            _log.debug("the controller was not woken: %s", error)

    async def close(self) -> None:
        await self._client.aclose()


def _error_of(response: httpx.Response) -> LorawayError:
    try:
        body = response.json()["error"]
        kind, message = _ERRORS.get(body["code"], Unavailable), str(body["message"])
    except (json.JSONDecodeError, KeyError, TypeError):
        kind, message = Unavailable, f"The controller answered {response.status_code}."
    retry_after = response.headers.get("retry-after", "")
    return kind(message, retry_after_seconds=int(retry_after) if retry_after.isdigit() else None)
