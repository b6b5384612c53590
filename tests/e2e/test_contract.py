"""The simulator is held to the real engines: every row of the dialect tables, asked of both.

What the simulator does wrong here is mended in the simulator, never in the row: the real engine is right.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import httpx
import pytest

from engines.launch.catalogue import choose_port, spec_for
from engines.launch.process import EngineProcess
from loadtest.running import eventually
from loraway.settings import Settings
from tests.adapters import ModelSize, write_adapter
from tests.e2e.contract import Answered, EngineUnderTest, comparable, differences
from tests.e2e.contract_rows import SGLANG, VLLM, Row, chat


@contextmanager
def simulator(kind: str, *options: str) -> Iterator[str]:
    """The URL of a simulated engine in a process of its own."""
    command = [sys.executable, "-m", "loadtest.simulator", "--engine", kind, "--api-key", "K", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"]
    finally:
        process.terminate()
        process.wait(10)


@contextmanager
def pair(real: EngineProcess, folder: Path) -> Iterator[tuple[EngineUnderTest, EngineUnderTest]]:
    """The real engine and a simulated one with the same limits."""
    size = ModelSize.read(real.spec.model_path)
    for seed, name in enumerate(("a1", "a2", "a3", "broken")):
        write_adapter(folder / name, seed, size=size)
    write_adapter(folder / "rank64", 9, size=size, rank=64)
    (folder / "broken" / "adapter_model.safetensors").write_bytes(b"\xff" * 100)
    limits = (
        *("--max-cpu-loras", str(real.spec.max_cpu_loras)),
        *("--max-lora-rank", str(real.spec.max_lora_rank)),
        *("--max-model-len", str(real.spec.max_model_len)),
    )
    with simulator(real.spec.kind, *limits) as url:
        both = (
            EngineUnderTest(real.spec.kind, real.url, real.spec.api_key, str(folder)),
            EngineUnderTest(real.spec.kind, url, "K", str(folder)),
        )
        both[0].empty()
        yield both


@pytest.fixture(scope="module")
def vllm(
    small_vllm_engine: EngineProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[EngineUnderTest, EngineUnderTest]]:
    with pair(small_vllm_engine, tmp_path_factory.mktemp("vllm")) as both:
        yield both


@pytest.fixture(scope="module")
def sglang(
    small_sglang_engine: EngineProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[EngineUnderTest, EngineUnderTest]]:
    with pair(small_sglang_engine, tmp_path_factory.mktemp("sglang")) as both:
        yield both


def check(row: Row, both: tuple[EngineUnderTest, EngineUnderTest]) -> None:
    real, simulated = (engine.answer(row) for engine in both)
    assert real.status == row.status, f"the table is wrong about the real engine: {real}"
    assert differences(real, simulated) == []


@pytest.mark.parametrize("row", VLLM, ids=lambda row: row.what)
def test_simulated_vllm_answers_as_vllm(row: Row, vllm: tuple[EngineUnderTest, EngineUnderTest]) -> None:
    check(row, vllm)


@pytest.mark.parametrize("row", SGLANG, ids=lambda row: row.what)
def test_simulated_sglang_answers_as_sglang(
    row: Row, sglang: tuple[EngineUnderTest, EngineUnderTest]
) -> None:
    check(row, sglang)


def overfill(engine: EngineUnderTest, folder: Path, limit: int, size: ModelSize) -> list[str]:
    """Load one adapter more than there is room for; the names that are listed then."""
    for seed in range(limit + 1):
        path = write_adapter(folder / f"over{seed}", seed, size=size)
        assert engine.change("load", {"lora_name": path.name, "lora_path": str(path)}).status_code == 200
    return engine.loaded()


def asks(engine: EngineUnderTest, adapter: str) -> Answered:
    model = adapter if engine.kind == "vllm" else f"smollm2-135m:{adapter}"
    row = chat("chat", 200, model)
    response = engine.client.post(row.path, json=row.body)
    return comparable(row, response, engine.folder)


def test_past_its_limit_vllm_lists_every_adapter_and_reads_evicted_ones_again(
    vllm: tuple[EngineUnderTest, EngineUnderTest], small_vllm_engine: EngineProcess, tmp_path: Path
) -> None:
    spec = small_vllm_engine.spec
    size = ModelSize.read(spec.model_path)
    seen = []
    for engine in vllm:
        listed = overfill(engine, tmp_path, spec.max_cpu_loras, size)
        seen.append((listed, asks(engine, "over0")))
        for name in listed:
            engine.change("unload", {"lora_name": name})
        assert asks(engine, "over0").status == 404

    assert seen[0] == seen[1]
    assert len(seen[0][0]) == spec.max_cpu_loras + 1


def test_past_its_limit_sglang_drops_the_least_recently_used_and_loads_it_again_when_asked(
    sglang: tuple[EngineUnderTest, EngineUnderTest], small_sglang_engine: EngineProcess, tmp_path: Path
) -> None:
    spec = small_sglang_engine.spec
    size = ModelSize.read(spec.model_path)
    seen = []
    for engine in sglang:
        listed = overfill(engine, tmp_path, spec.max_cpu_loras, size)
        answer = asks(engine, "over0")
        listed_after = engine.loaded()
        for name in listed_after:
            engine.change("unload", {"lora_name": name})
        revoked = asks(engine, "over0")
        engine.change("unload", {"lora_name": "over0"})
        (tmp_path / "over0" / "adapter_model.safetensors").unlink()
        seen.append((sorted(listed), answer, sorted(listed_after), revoked, asks(engine, "over0").status))

    assert seen[0] == seen[1]
    assert "over0" not in seen[0][0] and "over0" in seen[0][2]
    assert seen[0][3].status == 200, "an unload does not revoke"
    assert seen[0][4] == 400, "what is gone from the disk cannot come back"


def test_sglang_waits_for_an_adapters_requests_before_it_unloads_it(
    sglang: tuple[EngineUnderTest, EngineUnderTest],
) -> None:
    for engine in sglang:
        engine.change("load", {"lora_name": "a1", "lora_path": f"{engine.folder}/a1"})
        body = chat("", 200, "smollm2-135m:a1", stream=True, max_tokens=40, ignore_eos=True).body
        with (
            ThreadPoolExecutor() as threads,
            engine.client.stream("POST", "/v1/chat/completions", json=body) as response,
        ):
            lines = response.iter_lines()
            next(lines)
            unloading = threads.submit(engine.change, "unload", {"lora_name": "a1"})
            streamed = list(lines)
            assert "data: [DONE]" in streamed
        assert unloading.result().status_code == 200


def test_a_client_that_leaves_frees_sglangs_batch(sglang: tuple[EngineUnderTest, EngineUnderTest]) -> None:
    for engine in sglang:
        body = chat("", 200, stream=True, max_tokens=2000, ignore_eos=True).body
        with engine.client.stream("POST", "/v1/chat/completions", json=body) as response:
            next(response.iter_lines())

        def is_idle(client: httpx.Client = engine.client) -> bool:
            load = client.get("/v1/loads?include=core").json()["loads"][0]
            return int(load["num_running_reqs"]) == 0

        eventually(is_idle, within_seconds=15, what="the request that nobody reads has ended")


@pytest.fixture(scope="module")
def narrow_sglang(two_layer_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real SGLang that runs one request and lets one wait."""
    engine = {"device": "cpu", "dtype": "float32", "model_path": two_layer_model}
    settings = Settings.model_validate({"data_dir": tmp_path_factory.mktemp("narrow"), "engine": engine})
    spec = spec_for("sglang", settings, port=choose_port(), api_key="K")
    narrow = ("--max-running-requests", "1", "--max-queued-requests", "1")
    process = EngineProcess(replace(spec, extra_arguments=narrow))
    asyncio.run(process.start())
    try:
        asyncio.run(process.wait_ready(240))
        yield process.url
    finally:
        asyncio.run(process.stop())


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_full_queue_is_a_503_or_an_event_in_a_stream_that_began_with_200(
    narrow_sglang: str, is_stream: bool
) -> None:
    body = chat("", 200, stream=True, max_tokens=1500, ignore_eos=True).body
    row = chat("queue full", 200 if is_stream else 503, stream=is_stream)
    answers = []
    with simulator(
        *("sglang", "--max-num-seqs", "1", "--max-queued-requests", "1", "--inter-token-seconds", "0.02")
    ) as simulated_url:
        for url in (narrow_sglang, simulated_url):
            engine = EngineUnderTest("sglang", url, "K", "")
            with (
                engine.client.stream("POST", row.path, json=body) as running,
                ThreadPoolExecutor() as threads,
            ):
                lines = running.iter_lines()  # kept: httpx ends the request when this is collected
                next(lines)
                second = threads.submit(engine.answer, chat("waits", 200))
                eventually(partial(is_waiting, engine.client), within_seconds=20, what="one request waits")
                answers.append(engine.answer(row))
                running.close()
                assert second.result().status == 200
    real, simulated = answers
    assert real.status == row.status
    assert differences(real, simulated) == []


def is_waiting(client: httpx.Client) -> bool:
    """Whether one request waits behind the one that runs."""
    load = client.get("/v1/loads?include=core").json()["loads"][0]
    return (load["num_running_reqs"], load["num_waiting_reqs"]) == (1, 1)
