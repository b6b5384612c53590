"""What `loraway up` keeps running: engines, and our own processes."""

from __future__ import annotations

import asyncio
import json
import os
import sys

from engines.launch.catalogue import spec_for
from engines.launch.process import EngineProcess
from loraway.cli.client import fail
from loraway.cli.supervision import Process, ServiceChild
from loraway.settings import EngineKind, Settings

#: How long a process may take to end by itself, in seconds.
GRACE_SECONDS = {"controller": 5.0, "trainer": 10.0, "gateway": 30.0}


class EngineChild:
    """A local engine; a restarted one listens on the same port, so it stays the same replica."""

    def __init__(self, kind: EngineKind, settings: Settings, port: int, api_key: str) -> None:
        if kind == "openai":
            fail("An 'openai' engine is somebody else's server: name it with --engine-url openai=URL.")
        self.name: str = kind
        self._spec = spec_for(kind, settings, port=port, api_key=api_key)
        self._ready_seconds = settings.engine.ready_seconds
        self._is_ready: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        return self._spec.url

    @property
    def is_ready(self) -> bool:
        """Whether the present run has generated a token."""
        ready = self._is_ready
        return ready is not None and ready.done() and not ready.cancelled() and ready.exception() is None

    async def start(self) -> Process:
        process = EngineProcess(self._spec)
        await process.start()
        self._is_ready = asyncio.create_task(process.wait_ready(self._ready_seconds))
        return process


def services(settings: Settings) -> list[ServiceChild]:
    """Controller, trainer and gateway, in the order they are started."""
    environment = {**os.environ, **_environment(settings)}
    return [
        ServiceChild(
            name,
            [sys.executable, "-m", "loraway.cli.main", name],
            environment,
            settings.logs_dir / f"{name}.log",
            GRACE_SECONDS[name],
        )
        for name in ("controller", "trainer", "gateway")
    ]


def _environment(settings: Settings) -> dict[str, str]:
    """The settings that `up` changed, for the processes it starts."""
    values = {
        "DATA_DIR": str(settings.data_dir.resolve()),
        "ENGINE__URLS": json.dumps(settings.engine.urls),
        "ENGINE__BASE_MODEL": settings.engine.base_model,
        "ENGINE__MODEL_PATH": str(settings.model_path.resolve()),
        "GATEWAY__HOST": settings.gateway.host,
        "GATEWAY__PORT": str(settings.gateway.port),
        "GATEWAY__WORKERS": str(settings.gateway.workers),
        "CONTROLLER__PORT": str(settings.controller.port),
    }
    return {f"LORAWAY_{name}": value for name, value in values.items()}
