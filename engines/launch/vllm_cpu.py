"""Starts vLLM's CPU build through `vllm_cpu_server.py`."""

from __future__ import annotations

from engines.launch.launcher import OFFLINE, Command, LaunchSpec
from engines.launch.vllm_cuda import common_arguments, common_environment

#: One sequence of 2048 tokens needs 95 MB of float32 KV cache in SmolLM2-135M; batches share the rest.
KV_CACHE_BYTES = 201_326_592


class VLLMOnCPU:
    """vLLM on the processor, tuned for few cores."""

    def command(self, spec: LaunchSpec) -> Command:
        return Command(
            arguments=(
                *(str(spec.python), "-m", "engines.launch.vllm_cpu_server"),
                *common_arguments(spec),
                "--enforce-eager",
                *("--kv-cache-memory-bytes", str(KV_CACHE_BYTES)),
                *("--max-num-batched-tokens", "512"),
                *("--max-num-seqs", "8"),
                # The CPU's default of 128 never hits the prefix cache on short prompts.
                *("--block-size", "32"),
                *spec.extra_arguments,
            ),
            environment={
                **OFFLINE,
                **common_environment(spec),
                # The worker runs inside the engine process: one process and one import less.
                "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
                # Two OpenMP threads that spin while anything else runs slow decoding down 25 times.
                "OMP_NUM_THREADS": "1",
                "MKL_NUM_THREADS": "1",
                "OMP_WAIT_POLICY": "PASSIVE",
                "TORCHDYNAMO_DISABLE": "1",
            },
        )
