"""vLLM's `/metrics`: the series that a fleet reads, with the engine's own labels."""

from __future__ import annotations

import time

from loadtest.simulator.replica import Replica


def render(replica: Replica) -> str:
    """Prometheus text. Names and labels are the engine's; what it has beyond these nobody here reads."""
    labels = f'engine="0",model_name="{replica.settings.model}"'
    counts = replica.counts
    busy = ",".join(sorted(name for name, number in replica.running_by_adapter.items() if number))
    usage = replica.running / replica.settings.max_running
    return "\n".join(
        (
            "# HELP vllm:num_requests_running Number of requests in model execution batches.",
            "# TYPE vllm:num_requests_running gauge",
            f"vllm:num_requests_running{{{labels}}} {float(replica.running)}",
            "# TYPE vllm:num_requests_waiting gauge",
            f"vllm:num_requests_waiting{{{labels}}} {float(replica.waiting)}",
            "# TYPE vllm:num_requests_waiting_by_reason gauge",
            f'vllm:num_requests_waiting_by_reason{{{labels},reason="capacity"}} {float(replica.waiting)}',
            f'vllm:num_requests_waiting_by_reason{{{labels},reason="deferred"}} 0.0',
            "# TYPE vllm:kv_cache_usage_perc gauge",
            f"vllm:kv_cache_usage_perc{{{labels}}} {usage}",
            "# TYPE vllm:prompt_tokens_total counter",
            f"vllm:prompt_tokens_total{{{labels}}} {float(counts.prompt_tokens)}",
            "# TYPE vllm:generation_tokens_total counter",
            f"vllm:generation_tokens_total{{{labels}}} {float(counts.generated_tokens)}",
            "# TYPE vllm:lora_requests_info gauge",
            f'vllm:lora_requests_info{{max_lora="{replica.settings.max_loaded_adapters}",'
            f'running_lora_adapters="{busy}",waiting_lora_adapters=""}} {time.time()}',
            "",
        )
    )
