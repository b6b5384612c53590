"""Starts SGLang on NVIDIA GPUs, and holds what it is started with on a CPU as well."""

from __future__ import annotations

from engines.launch.launcher import LORA_TARGET_MODULES, OFFLINE, Command, LaunchSpec


class SGLangOnCUDA:
    """Stock SGLang on a GPU."""

    def command(self, spec: LaunchSpec) -> Command:
        return Command(
            arguments=(
                *(str(spec.python), "-m", "sglang.launch_server"),
                *common_arguments(spec),
                *spec.extra_arguments,
            ),
            environment=dict(OFFLINE),
        )


def common_arguments(spec: LaunchSpec) -> tuple[str, ...]:
    """Arguments that mean the same on every device.

    SGLang gives the base model one of the places in a batch, so it gets one more than vLLM. It takes its key
    only as an argument; it listens on loopback, where the key guards against mistakes and not against users
    of this machine who may list its processes.
    """
    places_in_batch = spec.max_loras + 1
    return (
        *("--model-path", str(spec.model_path)),
        *("--served-model-name", spec.base_model),
        *("--host", spec.host),
        *("--port", str(spec.port)),
        *("--api-key", spec.api_key),
        *("--dtype", spec.dtype),
        *("--context-length", str(spec.max_model_len)),
        "--enable-metrics",
        *("--log-level-http", "warning"),
        # Without it the scheduler spins a core while there is nothing to do.
        "--sleep-on-idle",
        "--enable-lora",
        *("--max-lora-rank", str(spec.max_lora_rank)),
        *("--lora-target-modules", *LORA_TARGET_MODULES),
        *("--max-loras-per-batch", str(places_in_batch)),
        *("--max-loaded-loras", str(max(spec.max_cpu_loras, places_in_batch))),
    )
