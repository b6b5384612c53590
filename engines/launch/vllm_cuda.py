"""Starts vLLM on NVIDIA GPUs, and holds what its CPU build is started with as well."""

from __future__ import annotations

from engines.launch.launcher import OFFLINE, Command, LaunchSpec


class VLLMOnCUDA:
    """Stock vLLM on a GPU."""

    def command(self, spec: LaunchSpec) -> Command:
        return Command(
            arguments=(
                *(str(spec.python), "-m", "vllm.entrypoints.launchers.api_server.entry"),
                *common_arguments(spec),
                *spec.extra_arguments,
            ),
            environment={**OFFLINE, **common_environment(spec)},
        )


def common_arguments(spec: LaunchSpec) -> tuple[str, ...]:
    """Arguments that mean the same on every device."""
    arguments = (
        *("--model", str(spec.model_path)),
        *("--served-model-name", spec.base_model),
        *("--host", spec.host),
        *("--port", str(spec.port)),
        *("--dtype", spec.dtype),
        *("--max-model-len", str(spec.max_model_len)),
        "--enable-lora",
        *("--max-loras", str(spec.max_loras)),
        *("--max-cpu-loras", str(spec.max_cpu_loras)),
        *("--max-lora-rank", str(spec.max_lora_rank)),
        "--enable-prompt-tokens-details",
        "--disable-uvicorn-access-log",
    )
    if spec.otlp_traces_endpoint is None:
        return arguments
    return (*arguments, "--otlp-traces-endpoint", spec.otlp_traces_endpoint)


def common_environment(spec: LaunchSpec) -> dict[str, str]:
    """Environment that means the same on every device. The key goes here, where `ps` does not show it."""
    environment = {
        "VLLM_API_KEY": spec.api_key,
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "VLLM_CACHE_ROOT": str(spec.cache_dir),
        "VLLM_NO_USAGE_STATS": "1",
    }
    if spec.otlp_traces_endpoint is not None:
        environment["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] = "http/protobuf"
    return environment
