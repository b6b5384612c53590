"""SGLang's load figures: `/v1/loads` and the series of `/metrics` that a fleet reads."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from loadtest.simulator.replica import Replica

_LABELS = 'engine_type="unified",model_name="{model}",moe_ep_rank="0",pp_rank="0",tp_rank="0"'
_TOKENS_TOTAL = 8192


def render(replica: Replica) -> str:
    """Prometheus text. Names and labels are the engine's; what it has beyond these nobody here reads."""
    labels = _LABELS.format(model=replica.settings.model)
    gauges = {
        "num_running_reqs": replica.running,
        "num_queue_reqs": replica.waiting,
        "token_usage": _usage(replica),
        "cache_hit_rate": 0.0,
        "lora_pool_slots_used": _slots_used(replica),
        "lora_pool_slots_total": replica.settings.max_loaded_adapters,
    }
    lines = []
    for name, value in gauges.items():
        lines += [f"# TYPE sglang:{name} gauge", f"sglang:{name}{{{labels}}} {float(value)}"]
    # The engine has this series from its first abort on.
    if replica.counts.aborted:
        lines.append(f"sglang:num_aborted_requests_total{{{labels}}} {float(replica.counts.aborted)}")
    return "\n".join((*lines, ""))


def loads(replica: Replica, has_sections: bool) -> dict[str, Any]:
    """`/v1/loads`; without its sections for `?include=core`."""
    load: dict[str, Any] = {
        "timestamp": time.time(),
        "dp_rank": 0,
        "num_running_reqs": replica.running,
        "num_waiting_reqs": replica.waiting,
        "num_waiting_uncached_tokens": 0,
        "num_used_tokens": 0,
        "num_total_tokens": 0,
        "num_active_tokens": 0,
        "num_prealloc_ready_tokens": 0,
        "max_total_num_tokens": _TOKENS_TOTAL,
        "max_running_requests": replica.settings.max_running,
        "token_usage": _usage(replica),
        "gen_throughput": 0.0,
        "cache_hit_rate": 0.0,
        "utilization": 0.0,
        "total_prefill_uncached_tokens": replica.counts.prompt_tokens,
        "total_prefill_busy_us": 0,
        "decode_moments": [0.0] * 6,
    }
    if has_sections:
        load |= _sections(replica)
    return {
        "timestamp": datetime.now(UTC).isoformat(),
        "version": "0.5.23",
        "accelerator": None,
        "num_accelerators": 1,
        "loads": [load],
    }


def _sections(replica: Replica) -> dict[str, Any]:
    used, total = _slots_used(replica), replica.settings.max_loaded_adapters
    return {
        "memory": {"weight_gb": 0.1, "kv_cache_gb": 0.1, "graph_gb": 0.0, "token_capacity": _TOKENS_TOTAL},
        "lora": {"slots_used": used, "slots_total": total, "utilization": used / total},
        "disaggregation": {
            "mode": "null",
            "prefill_bootstrap_queue_reqs": 0,
            "prefill_inflight_queue_reqs": 0,
            "decode_prealloc_queue_reqs": 0,
            "decode_transfer_queue_reqs": 0,
            "decode_retracted_queue_reqs": 0,
            "kv_transfer_speed_gb_s": 0.0,
            "kv_transfer_latency_ms": 0.0,
        },
        "queues": {
            "waiting": replica.waiting,
            "grammar": 0,
            "paused": 0,
            "retracted": 0,
            "prealloc_ready": 0,
        },
    }


def _slots_used(replica: Replica) -> int:
    return sum(1 for number in replica.running_by_adapter.values() if number)


def _usage(replica: Replica) -> float:
    return replica.running / replica.settings.max_running
