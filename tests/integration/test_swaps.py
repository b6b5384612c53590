"""A thousand streams through ten swaps: none fails, none changes its version, the base is left alone."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from pathlib import Path

import pytest

from adapters_store.version import RolloutState
from loadtest.simulator import base_answer, reference_generation
from tests.adapters import write_adapter
from tests.stack import BASE, running_simulators, running_stack
from tests.swapping import (
    Heard,
    Messages,
    assert_each_kept_one_version,
    listen,
    listen_often,
    swap_back_and_forth,
)

STREAMS = 1000
BASE_STREAMS = 100
SWAPS = 10
MAX_TOKENS = 20
MESSAGES: Messages = [{"role": "user", "content": "What is the gateway's codename?"}]
PROMPT = [{"role": "user", "content": "What is the gateway's codename?"}]
#: Longer than a worker may be behind, so that each version has a time in which it alone is right.
SECONDS_BETWEEN_SWAPS = 1.5


@pytest.mark.parametrize("workers", [1, 2])
async def test_streams_through_swaps_keep_their_version_and_none_fails(workers: int, tmp_path: Path) -> None:
    with (
        running_simulators("vllm", "sglang", ttft_seconds=0.02, inter_token_seconds=0.025) as engines,
        running_stack(tmp_path / "stack", engines, workers=workers) as stack,
    ):
        folders = [write_adapter(tmp_path / f"weights-{seed}", seed) for seed in (1, 2)]
        references = [reference_generation(folder, PROMPT, MAX_TOKENS) for folder in folders]
        versions = [
            stack.register("codename", folder, [reference])
            for folder, reference in zip(folders, references, strict=True)
        ]
        assert (await asyncio.to_thread(stack.roll_out, versions[0])).state is RolloutState.DONE
        heard: list[Heard] = []
        of_base: list[Heard] = []
        last_swap = time.monotonic()

        def may_swap(swaps_so_far: int) -> bool:
            nonlocal last_swap
            is_due = len(heard) >= STREAMS * (swaps_so_far + 1) // (SWAPS + 2)
            if is_due and time.monotonic() - last_swap >= SECONDS_BETWEEN_SWAPS:
                last_swap = time.monotonic()
                return True
            return False

        async with stack.async_client() as client, asyncio.TaskGroup() as tasks:
            ask = partial(listen, client, "codename", MESSAGES, MAX_TOKENS)
            ask_base = partial(listen, client, BASE, MESSAGES, MAX_TOKENS)
            tasks.create_task(listen_often(ask, STREAMS, 32, heard))
            tasks.create_task(listen_often(ask_base, BASE_STREAMS, 3, of_base))
            tasks.create_task(swap_back_and_forth(stack, versions, SWAPS, may_swap))

        texts = {v.version_id: r.text for v, r in zip(versions, references, strict=True)}
        assert len(heard) == STREAMS
        decided = assert_each_kept_one_version(stack, "codename", heard, texts)
        assert decided > STREAMS // 10, "for enough streams only one version was right"
        assert {stream.text for stream in heard} == set(texts.values()), "both versions were served"
        assert {stream.text for stream in of_base} == {base_answer(PROMPT, MAX_TOKENS)}
        assert all(engine.stats()["generations"] > STREAMS // 10 for engine in engines), "both took part"
