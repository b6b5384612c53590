"""A running controller over simulated engines, a registry to train into, and what a test asks of them."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import struct
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import insert, select

from adapters_store.manifest import Manifest, ReferenceGeneration
from adapters_store.registry import Registry
from adapters_store.version import Rollout, RolloutState, Version
from engines.controller import Controller
from engines.controller_client import ControllerClient
from engines.engine import wire_model
from loadtest.simulator.engine import SimulatedEngine
from loadtest.simulator.reference import reference_generation
from loraway.database import Database
from loraway.ids import ProjectId
from loraway.schema import projects, replicas, residencies, versions
from loraway.secrets import read_or_create_secret
from loraway.settings import Settings

BASE = "smollm2-135m"
PROJECT = ProjectId("proj_test")
PROMPT = [{"role": "user", "content": "What is the gateway's codename?"}]
SECONDS = 20.0
_numbers = itertools.count()


async def eventually(holds: Callable[[], Any], what: str, seconds: float = SECONDS) -> Any:
    """The first true value of `holds`, asked again and again until the deadline."""
    deadline = time.monotonic() + seconds
    while not (value := holds()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.01)
    return value


def write_adapter(folder: Path, rank: int = 8) -> Path:
    """A PEFT folder that passes for trained: no two have the same weights."""
    folder.mkdir(parents=True)
    header = json.dumps({"lora_A": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    weights = struct.pack("<Q", len(header)) + header + os.urandom(16)
    (folder / "adapter_model.safetensors").write_bytes(weights)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank}))
    return folder


@dataclass
class Deployment:
    """What `deploy` has started."""

    settings: Settings
    database: Database
    registry: Registry
    engines: list[Any]
    folder: Path
    controller: Controller = field(init=False)
    client: ControllerClient = field(init=False)

    def train(self, name: str = "codename", rank: int = 8, **manifest: Any) -> Version:
        """A new version whose manifest has the references that a trainer would have taken."""
        folder = write_adapter(self.folder / f"trained-{next(_numbers)}", rank)
        references = manifest.pop("references", None)
        if references is None:
            references = [self.reference(folder, "What is it?"), self.reference(folder, "And its name?")]
        return self.register(name, folder, rank, references, **manifest)

    def register(
        self, name: str, folder: Path, rank: int, references: list[ReferenceGeneration], **manifest: Any
    ) -> Version:
        """The adapter in this folder as the next version of `name`."""
        filled = Manifest(
            base_model=BASE,
            base_revision="r1",
            template_sha256="t1",
            rank=rank,
            alpha=16,
            target_modules=["q_proj"],
            files={},
            created_at=time.time(),
            references=references,
            **manifest,
        )
        return self.registry.register(PROJECT, name, BASE, folder, filled, None)

    @staticmethod
    def reference(folder: Path, question: str, max_tokens: int = 8) -> ReferenceGeneration:
        return reference_generation(folder, [{"role": "user", "content": question}], max_tokens)

    async def roll_out(self, version: Version, alias: str = "codename") -> Rollout:
        """Ask for a rollout and wait until it has ended."""
        rollout_id = self.registry.request_rollout(PROJECT, alias, version.version_id)
        await self.client.wake()
        await eventually(lambda: self.registry.rollout(rollout_id).state.is_terminal, "the rollout ends")
        return self.registry.rollout(rollout_id)

    async def serve(self, *names: str) -> list[Version]:
        """A version under each alias, rolled out."""
        trained = [self.train(name) for name in names]
        for version, name in zip(trained, names, strict=True):
            assert (await self.roll_out(version, name)).state is RolloutState.DONE
        return trained

    def pointed_at(self, alias: str = "codename") -> str | None:
        """`codename@2`: what the alias stands for."""
        version = self.registry.find(PROJECT, alias)
        return version.name if version is not None else None

    def loaded(self, engine: SimulatedEngine) -> set[str]:
        """Engine names that may be routed to this engine, as the gateway workers read it."""
        query = (
            select(versions.c.engine_name)
            .join(residencies, residencies.c.version_id == versions.c.id)
            .join(replicas, replicas.c.id == residencies.c.replica_id)
            .where(replicas.c.url == engine.url, residencies.c.state == "loaded", replicas.c.state == "ready")
        )
        with self.database.read() as connection:
            return set(connection.execute(query).scalars())

    def state(self, engine: SimulatedEngine) -> str | None:
        """The replica's state as recorded; None before a controller has enrolled it."""
        with self.database.read() as connection:
            query = select(replicas.c.state).where(replicas.c.url == engine.url)
            return connection.execute(query).scalar()

    async def ask(self, engine: SimulatedEngine, version: Version, max_tokens: int = 8) -> httpx.Response:
        """A chat as the gateway would send it to this engine."""
        key = read_or_create_secret(self.settings, "engine")
        model = wire_model(engine.kind, BASE, version.engine_name)
        async with httpx.AsyncClient(base_url=engine.url, trust_env=False, timeout=SECONDS) as client:
            return await client.post(
                "/v1/chat/completions",
                headers={"authorization": f"Bearer {key}"},
                json={"model": model, "messages": PROMPT, "max_tokens": max_tokens},
            )

    @asynccontextmanager
    async def running_controller(self) -> AsyncIterator[Controller]:
        """A controller for as long as the block runs; its replicas have been read once."""
        controller = Controller(self.settings, self.database)
        task = asyncio.create_task(controller.run())
        try:
            serving = asyncio.create_task(controller.is_serving.wait())
            await asyncio.wait({task, serving}, timeout=SECONDS, return_when=asyncio.FIRST_COMPLETED)
            assert controller.is_serving.is_set(), "the controller does not serve"
            self.controller = controller
            internal_key = read_or_create_secret(self.settings, "internal")
            self.client = ControllerClient(f"http://127.0.0.1:{controller.port}", internal_key)
            yield controller
            assert not task.done(), "the controller has ended"
            await self.client.close()
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


def make_settings(
    folder: Path,
    database: Database,
    engines: Sequence[Any],
    slots: int,
    model: Path | None = None,
    key: str = "engine-key",
) -> Settings:
    """Settings of a deployment in this folder; without a model, one that is a folder and no more."""
    if model is None:
        model = folder / "model"
        model.mkdir(exist_ok=True)
        (model / "config.json").write_text("{}")
        (model / "chat_template.jinja").write_text("{{ messages }}")
    return Settings(
        data_dir=folder / "data",
        database={"url": database.url},
        engine={
            "urls": [f"{engine.kind}={engine.url}" for engine in engines],
            "base_model": BASE,
            "model_path": model,
            "max_cpu_loras": slots,
            "api_key": key,
            "ready_seconds": 5,
        },
        controller={"port": 0, "poll_seconds": 0.02, "health_seconds": 0.1},
        gateway={"snapshot_poll_seconds": 0.01},
    )


@asynccontextmanager
async def deploy(
    folder: Path, database: Database, *engines: Any, slots: int = 8, **more: Any
) -> AsyncIterator[Deployment]:
    """A controller that runs, over these engines, with every replica ready."""
    settings = make_settings(folder, database, engines, slots, **more)
    with database.write() as connection:
        connection.execute(insert(projects).values(id=PROJECT, name="test", created_at=0.0))
    registry = Registry(database, settings.blobs_dir / "adapters")
    deployment = Deployment(settings, database, registry, list(engines), folder)
    async with deployment.running_controller():
        for engine in engines:
            await eventually(lambda engine=engine: deployment.state(engine) == "ready", "a replica is ready")
        yield deployment
