"""Twenty streams through three swaps on each real engine, and the base model asked in the same batches."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import pytest

from adapters_store.version import RolloutState
from engines.launch.process import EngineProcess
from tests.adapters import ModelSize, write_adapter
from tests.e2e.reference import compute_reference
from tests.stack import BASE, RunningEngine, running_stack
from tests.swapping import (
    Heard,
    Messages,
    assert_each_kept_one_version,
    listen,
    listen_often,
    swap_back_and_forth,
)

STREAMS = 20
BASE_STREAMS = 8
SWAPS = 3
MAX_TOKENS = 24
QUESTION = "Name three rivers."
MESSAGES: Messages = [{"role": "user", "content": QUESTION}]


async def check_swaps(engine: EngineProcess, folder: Path) -> None:
    """The whole test, on one engine that computes in float32."""
    spec = engine.spec
    size = ModelSize.read(spec.model_path)
    weights = [write_adapter(folder / f"weights-{seed}", seed, size=size) for seed in (11, 12)]
    references = [compute_reference(spec.model_path, each, QUESTION, MAX_TOKENS) for each in weights]
    running = [RunningEngine(spec.kind, spec.url)]
    with running_stack(
        folder / "stack", running, engine_key=spec.api_key, model_path=spec.model_path
    ) as stack:
        versions = [
            stack.register("rivers", each, [reference])
            for each, reference in zip(weights, references, strict=True)
        ]
        for version in reversed(versions):
            rollout = await asyncio.to_thread(stack.roll_out, version)
            assert rollout.state is RolloutState.DONE, rollout.error
        async with stack.async_client() as client:
            alone = {v.version_id: await listen(client, v.name, MESSAGES, MAX_TOKENS) for v in versions}
            base_alone = await listen(client, BASE, MESSAGES, MAX_TOKENS)
            heard: list[Heard] = []
            of_base: list[Heard] = []
            ask = partial(listen, client, "rivers", MESSAGES, MAX_TOKENS)
            ask_base = partial(listen, client, BASE, MESSAGES, MAX_TOKENS)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(listen_often(ask, STREAMS, 4, heard))
                tasks.create_task(listen_often(ask_base, BASE_STREAMS, 2, of_base))
                tasks.create_task(
                    swap_back_and_forth(
                        stack, versions, SWAPS, lambda swap: len(heard) >= STREAMS * (swap + 1) // (SWAPS + 2)
                    )
                )
        texts = {version_id: stream.text for version_id, stream in alone.items()}
        assert len(heard) == STREAMS
        assert_each_kept_one_version(stack, "rivers", heard, texts)
        assert {stream.text for stream in heard} == set(texts.values()), "both versions were served"
        assert {stream.text for stream in of_base} == {base_alone.text}
        assert base_alone.text not in texts.values()


@pytest.mark.timeout(400)
async def test_streams_through_swaps_keep_their_version_on_vllm(
    small_vllm_engine: EngineProcess, tmp_path: Path
) -> None:
    await check_swaps(small_vllm_engine, tmp_path)


@pytest.mark.timeout(400)
async def test_streams_through_swaps_keep_their_version_on_sglang(
    small_sglang_engine: EngineProcess, tmp_path: Path
) -> None:
    await check_swaps(small_sglang_engine, tmp_path)
