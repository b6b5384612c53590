"""A running loraway for tests: a real controller and real gateway workers, over engines that are running.

`running_simulators` starts simulated engines; real ones come from the fixtures of `tests/e2e/conftest.py`.
`running_stack` puts controller and gateway before them. All are processes of their own on free ports, stopped
by their ids.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
from sqlalchemy import select

from adapters_store.manifest import Manifest, ReferenceGeneration
from adapters_store.registry import Registry
from adapters_store.version import Rollout, Version
from engines.launch.catalogue import choose_port
from gateway.keys import KeyStore, ensure_default_project
from loadtest.running import eventually
from loraway.database import Database
from loraway.ids import ProjectId
from loraway.schema import replicas
from loraway.secrets import read_or_create_secret
from loraway.settings import Settings

BASE = "smollm2-135m"
READY_SECONDS = 60.0
ROLLOUT_SECONDS = 120.0
_STOP_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class RunningEngine:
    """An engine that a stack may use."""

    kind: str
    url: str
    #: The simulator's own interface for faults and figures; none at a real engine.
    control_url: str | None = None

    def stats(self) -> dict[str, Any]:
        """What a simulated engine has counted."""
        answer: dict[str, Any] = httpx.get(f"{self.control_url}/_simulator/stats").json()
        return answer

    def fault(self, kind: str, **options: Any) -> None:
        """Put a fault into a simulated engine."""
        body = {"fault": kind, **options}
        httpx.post(f"{self.control_url}/_simulator/faults", json=body).raise_for_status()


@dataclass(slots=True)
class Stack:
    """What `running_stack` has started, and how a test talks to it."""

    settings: Settings
    database: Database
    registry: Registry
    engines: Sequence[RunningEngine]
    folder: Path
    project_id: ProjectId
    api_key: str
    #: By name: controller, gateway.
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.settings.gateway.port}"

    def client(self) -> openai.OpenAI:
        """The official client, without retries of its own."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.api_key, max_retries=0, timeout=120)

    def async_client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key=self.api_key, max_retries=0, timeout=120)

    def register(
        self,
        name: str,
        folder: Path,
        references: Sequence[ReferenceGeneration],
        **manifest: Any,
    ) -> Version:
        """The adapter in this folder as the next version of `name`."""
        rank = json.loads((folder / "adapter_config.json").read_bytes())["r"]
        filled = Manifest(
            base_model=BASE,
            base_revision="of the test",
            template_sha256="of the test",
            rank=rank,
            alpha=rank,
            target_modules=["q_proj"],
            files={},
            created_at=time.time(),
            references=list(references),
            **manifest,
        )
        return self.registry.register(self.project_id, name, BASE, folder, filled, None)

    def roll_out(self, version: Version, alias: str | None = None) -> Rollout:
        """Ask the controller to put a version under its alias; returns when that has ended, well or not."""
        rollout_id = self.registry.request_rollout(
            self.project_id, alias or version.adapter_name, version.version_id
        )
        self._wake_controller()
        eventually(
            lambda: self.registry.rollout(rollout_id).state.is_terminal,
            within_seconds=ROLLOUT_SECONDS,
            what=f"the rollout of {version.name} ends",
        )
        return self.registry.rollout(rollout_id)

    def log_of(self, process: str) -> str:
        return (self.folder / f"{process}.log").read_text(errors="replace")

    def _wake_controller(self) -> None:
        key = read_or_create_secret(self.settings, "internal")
        url = f"http://127.0.0.1:{self.settings.controller.port}/internal/wake"
        httpx.post(url, headers={"authorization": f"Bearer {key}"}).raise_for_status()


@contextmanager
def running_simulators(*kinds: str, api_key: str = "K", **options: float) -> Iterator[list[RunningEngine]]:
    """Simulated engines in one process. Options are the simulator's own: `ttft_seconds=0.01`."""
    command = [sys.executable, "-m", "loadtest.simulator", "--api-key", api_key]
    for kind in kinds:
        command += ["--engine", kind]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        yield [RunningEngine(e["kind"], e["url"], e["control_url"]) for e in ready["engines"]]
    finally:
        process.terminate()
        process.wait(_STOP_SECONDS)


@contextmanager
def running_stack(
    folder: Path,
    engines: Sequence[RunningEngine],
    *,
    engine_key: str = "K",
    workers: int = 1,
    model_path: Path | None = None,
    environment: dict[str, str] | None = None,
) -> Iterator[Stack]:
    """A controller and a gateway over these engines, every replica ready, with one API key.

    `environment` holds further settings (`{"LORAWAY_TRAFFIC__STORE_BY_DEFAULT": "true"}`).
    """
    folder.mkdir(parents=True, exist_ok=True)
    variables = _variables(folder, engines, engine_key, workers, model_path or _no_model(folder))
    settings = _settings(variables | (environment or {}))
    database = Database(settings.database_url)
    database.migrate()
    project_id = ensure_default_project(database)
    api_key, _ = KeyStore(database).create(project_id, "test")
    registry = Registry(database, settings.blobs_dir / "adapters")
    stack = Stack(settings, database, registry, engines, folder, project_id, api_key)
    try:
        for name, module in (("controller", "engines.controller"), ("gateway", "gateway.server")):
            stack.processes[name] = _start(module, folder / f"{name}.log", variables | (environment or {}))
        _wait_until_ready(stack)
        yield stack
    finally:
        for process in reversed(stack.processes.values()):
            _stop(process)
        database.dispose()


def _variables(
    folder: Path, engines: Sequence[RunningEngine], engine_key: str, workers: int, model_path: Path
) -> dict[str, str]:
    settings = {
        "DATA_DIR": str(folder / "data"),
        "ENGINE__URLS": json.dumps([f"{engine.kind}={engine.url}" for engine in engines]),
        "ENGINE__API_KEY": engine_key,
        "ENGINE__BASE_MODEL": BASE,
        "ENGINE__MODEL_PATH": str(model_path),
        "GATEWAY__PORT": str(choose_port()),
        "GATEWAY__WORKERS": str(workers),
        "CONTROLLER__PORT": str(choose_port()),
    }
    # No loraway.toml of this machine may have a say in a test.
    variables = {f"LORAWAY_{name}": value for name, value in settings.items()}
    return {"LORAWAY_CONFIG": str(folder / "none.toml"), **variables}


def _settings(variables: dict[str, str]) -> Settings:
    """The settings as the processes will read them."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        return Settings()
    finally:
        os.environ.clear()
        os.environ.update(before)


def _no_model(folder: Path) -> Path:
    """A base model's folder with as much in it as a controller reads."""
    model = folder / "model"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text("{}")
    (model / "chat_template.jinja").write_text("{{ messages }}")
    return model


def _start(module: str, log_path: Path, variables: dict[str, str]) -> subprocess.Popen[bytes]:
    with log_path.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", module],
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


def _wait_until_ready(stack: Stack) -> None:
    def is_ready() -> bool:
        for name, process in stack.processes.items():
            if process.poll() is not None:
                raise AssertionError(f"the {name} ended: {stack.log_of(name)[-3000:]}")
        with stack.database.read() as connection:
            states = list(connection.execute(select(replicas.c.state)).scalars())
        if states.count("ready") < len(stack.engines):
            return False
        try:
            return httpx.get(f"{stack.url}/readyz").status_code == 200
        except httpx.TransportError:
            return False

    eventually(is_ready, within_seconds=READY_SECONDS, what="controller, gateway and replicas are ready")


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
