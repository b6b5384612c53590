"""Real vLLM and real SGLang, started by us: they answer, mix adapters rightly, and leave nothing behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from engines.engine import wire_model
from engines.launch.process import EngineProcess
from loadtest.running import eventually
from tests.e2e.conftest import ENGINE_KEY, READY_SECONDS, RandomAdapter, StartEngine

QUESTION = "What is the capital of France?"

#: Starts an engine with our own launcher, says its id, waits for a line, says whether it became ready.
SUPERVISOR = textwrap.dedent(
    """
    import asyncio, json, sys
    from engines.launch.catalogue import choose_port, spec_for
    from engines.launch.process import EngineProcess
    from loraway.settings import Settings

    async def main():
        settings = Settings.model_validate(json.loads(sys.argv[2]))
        engine = EngineProcess(spec_for(sys.argv[1], settings, port=choose_port(), api_key="k"))
        await engine.start()
        print(engine.pid, flush=True)
        await engine.wait_ready(240)
        print("ready", flush=True)
        await engine.wait()

    asyncio.run(main())
    """
)


async def ask(engine: EngineProcess, adapter: str | None, question: str, max_tokens: int = 16) -> str:
    """The greedy answer of the base model or of an adapter."""
    async with httpx.AsyncClient(base_url=engine.url, timeout=120) as client:
        answer = await client.post(
            "/v1/chat/completions",
            headers={"authorization": f"Bearer {ENGINE_KEY}"},
            json={
                "model": wire_model(engine.spec.kind, engine.spec.base_model, adapter),
                "messages": [{"role": "user", "content": question}],
                "max_tokens": max_tokens,
                "temperature": 0,
            },
        )
    answer.raise_for_status()
    text: str = answer.json()["choices"][0]["message"]["content"]
    return text


@asynccontextmanager
async def loaded(engine: EngineProcess, adapters: dict[str, Path]) -> AsyncIterator[None]:
    """The adapters are loaded inside this block, and out of the shared engine again behind it."""
    prefix = "/v1" if engine.spec.kind == "vllm" else ""
    headers = {"authorization": f"Bearer {ENGINE_KEY}"}
    async with httpx.AsyncClient(base_url=engine.url, timeout=120, headers=headers) as client:
        for name, folder in adapters.items():
            body = {"lora_name": name, "lora_path": str(folder)}
            (await client.post(f"{prefix}/load_lora_adapter", json=body)).raise_for_status()
        try:
            yield
        finally:
            for name in adapters:
                unloading = await client.post(f"{prefix}/unload_lora_adapter", json={"lora_name": name})
                unloading.raise_for_status()


@pytest.fixture(params=["vllm", "sglang"])
def engine(request: pytest.FixtureRequest) -> EngineProcess:
    """Each of the two real engines."""
    process: EngineProcess = request.getfixturevalue(f"{request.param}_engine")
    return process


async def test_base_model_answers_in_truth(engine: EngineProcess) -> None:
    assert "Paris" in await ask(engine, None, QUESTION)


async def test_a_caller_without_the_key_is_refused(engine: EngineProcess) -> None:
    async with httpx.AsyncClient(base_url=engine.url, timeout=120) as client:
        answer = await client.get("/v1/models", headers={"authorization": "Bearer wrong"})
    assert answer.status_code == 401


async def test_base_answers_stay_the_same_while_every_slot_has_an_adapter_in_the_same_batch(
    engine: EngineProcess, random_adapter: RandomAdapter
) -> None:
    questions = [QUESTION, "Name a colour.", "What is two plus two?"]
    adapters = {f"mixed-{seed}": random_adapter(rank=8, seed=seed) for seed in range(engine.spec.max_loras)}
    alone = [await ask(engine, None, question) for question in questions]

    async with loaded(engine, adapters):
        mixed = await asyncio.gather(
            *(ask(engine, None, question) for question in questions),
            *(ask(engine, name, QUESTION) for name in adapters),
        )

    assert mixed[: len(questions)] == alone
    assert set(mixed[len(questions) :]).isdisjoint(alone)
    assert len(set(mixed[len(questions) :])) == len(adapters)


@contextmanager
def supervisor_of(kind: str, model_path: Path, data_dir: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that has started an engine, and the engine's id; nothing of either is left afterwards."""
    settings = f'{{"data_dir": "{data_dir}", "engine": {{"model_path": "{model_path}", "device": "cpu"}}}}'
    supervisor = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, kind, settings], stdout=subprocess.PIPE, text=True
    )
    assert supervisor.stdout is not None
    engine_pid = int(supervisor.stdout.readline())
    try:
        yield supervisor, engine_pid
    finally:
        supervisor.kill()
        supervisor.wait()
        for process in session_of(engine_pid):
            process.kill()


def session_of(leader: int) -> list[psutil.Process]:
    """The living processes of the session that the engine leads."""
    members = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                members.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return members


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_nothing_is_left_when_the_supervisor_of_a_ready_engine_is_killed(
    kind: str, two_layer_model: Path, tmp_path: Path
) -> None:
    with supervisor_of(kind, two_layer_model, tmp_path) as (supervisor, engine_pid):
        assert supervisor.stdout is not None
        assert supervisor.stdout.readline() == "ready\n"
        assert len(session_of(engine_pid)) >= 2, "the engine has no process beside its server"

        os.kill(supervisor.pid, signal.SIGKILL)

        eventually(lambda: not session_of(engine_pid), within_seconds=20, what="every process is gone")


@pytest.mark.parametrize(("kind", "processes"), [("vllm", 1), ("sglang", 3)])
def test_nothing_is_left_when_the_supervisor_is_killed_while_the_engine_starts(
    kind: str, processes: int, two_layer_model: Path, tmp_path: Path
) -> None:
    with supervisor_of(kind, two_layer_model, tmp_path) as (supervisor, engine_pid):
        eventually(
            lambda: len(session_of(engine_pid)) >= processes,
            within_seconds=READY_SECONDS,
            what=f"{processes} processes of the engine",
        )

        os.kill(supervisor.pid, signal.SIGKILL)

        eventually(lambda: not session_of(engine_pid), within_seconds=20, what="every process is gone")


async def test_a_killed_vllm_frees_its_port_at_once_and_starts_again_on_it(
    start_engine: StartEngine, two_layer_model: Path
) -> None:
    engine = await start_engine("vllm", model_path=two_layer_model)
    os.kill(engine.pid, signal.SIGKILL)
    assert await asyncio.wait_for(engine.wait(), 30) == -signal.SIGKILL
    with pytest.raises(httpx.ConnectError):
        await ask(engine, None, QUESTION)

    again = EngineProcess(engine.spec)
    try:
        await again.start()
        await again.wait_ready(READY_SECONDS)
    finally:
        await again.stop()

    assert again.returncode == 0
