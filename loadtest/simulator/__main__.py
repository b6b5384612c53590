"""`python -m loadtest.simulator`: simulated engines in one process, their addresses on one JSON line.

`--engine` may be given more than once; every other option holds for all of them. The line is
`{"url", "engines": [{"kind", "url", "control_url"}], "pid"}`, `url` being the first engine's.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import signal
from collections.abc import Sequence
from contextlib import AsyncExitStack

import uvloop

from loadtest.simulator.engine import SimulatedEngine
from loadtest.simulator.settings import ReplicaSettings


def read_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; limits are named as the engines name theirs."""
    defaults = ReplicaSettings()
    parser = argparse.ArgumentParser(prog="python -m loadtest.simulator", description=__doc__)
    parser.add_argument("--engine", action="append", choices=("vllm", "sglang"), help="dialect; repeatable")
    parser.add_argument("--model", default=defaults.model, help="name of the base model")
    parser.add_argument("--port", type=int, default=0, help="port of the first engine; 0: any")
    parser.add_argument("--api-key", default=None, help="key the engines ask for")
    parser.add_argument("--max-cpu-loras", type=int, default=defaults.max_loaded_adapters)
    parser.add_argument("--max-lora-rank", type=int, default=defaults.max_lora_rank)
    parser.add_argument("--max-model-len", type=int, default=defaults.max_model_len, help="tokens")
    parser.add_argument("--max-num-seqs", type=int, default=defaults.max_running, help="requests at once")
    parser.add_argument("--max-queued-requests", type=int, default=None, help="SGLang: refuse past this")
    parser.add_argument("--ttft-seconds", type=float, default=0.0)
    parser.add_argument("--inter-token-seconds", type=float, default=0.0)
    parser.add_argument("--load-seconds", type=float, default=0.0, help="time to load an adapter")
    return parser.parse_args(arguments)


async def serve(options: argparse.Namespace) -> None:
    """Serve until SIGTERM or SIGINT."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, stopped.set)
    async with AsyncExitStack() as stack:
        engines = [
            await stack.enter_async_context(
                SimulatedEngine(
                    kind,
                    port=options.port if index == 0 else 0,
                    model=options.model,
                    api_key=options.api_key,
                    max_loaded_adapters=options.max_cpu_loras,
                    max_lora_rank=options.max_lora_rank,
                    max_model_len=options.max_model_len,
                    max_running=options.max_num_seqs,
                    max_queued=options.max_queued_requests,
                    ttft_seconds=options.ttft_seconds,
                    inter_token_seconds=options.inter_token_seconds,
                    load_seconds=options.load_seconds,
                )
            )
            for index, kind in enumerate(options.engine or ["vllm"])
        ]
        addresses = [{"kind": e.kind, "url": e.url, "control_url": e.control_url} for e in engines]
        print(json.dumps({"url": engines[0].url, "engines": addresses, "pid": os.getpid()}), flush=True)
        gc.freeze()
        await stopped.wait()


if __name__ == "__main__":
    uvloop.run(serve(read_arguments()))
