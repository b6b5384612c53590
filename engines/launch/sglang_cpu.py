"""Starts SGLang on a machine without a GPU, with stand-ins for the two things that its wheels lack there."""

from __future__ import annotations

from pathlib import Path

from engines.launch.launcher import OFFLINE, Command, LaunchSpec
from engines.launch.sglang_cuda import common_arguments

#: Goes on PYTHONPATH, and so into SGLang's child processes. Never where there is a GPU.
STAND_INS = Path(__file__).parent / "sglang_cpu_shims"


class SGLangOnCPU:
    """SGLang with its torch-native backends."""

    def command(self, spec: LaunchSpec) -> Command:
        return Command(
            arguments=(
                *(str(spec.python), "-m", "sglang.launch_server"),
                *common_arguments(spec),
                *("--device", "cpu"),
                *("--attention-backend", "torch_native"),
                *("--sampling-backend", "pytorch"),
                *("--lora-backend", "torch_native"),
                "--disable-cuda-graph",
                # Without a limit it takes most of the machine's memory.
                *("--max-total-tokens", "8192"),
                *("--max-running-requests", "8"),
                *spec.extra_arguments,
            ),
            environment={
                **OFFLINE,
                "SGLANG_USE_CPU_ENGINE": "1",
                "PYTHONPATH": str(STAND_INS),
            },
        )
