"""What a simulated replica is told at its start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SimulatedKind = Literal["vllm", "sglang"]


@dataclass(frozen=True, slots=True)
class ReplicaSettings:
    """Limits and speed of one simulated replica; the limits are those of the engines' own flags."""

    kind: SimulatedKind = "vllm"
    model: str = "smollm2-135m"
    api_key: str | None = None
    max_model_len: int = 2048
    max_lora_rank: int = 32
    #: `--max-cpu-loras` of vLLM, `--max-loaded-loras` of SGLang.
    max_loaded_adapters: int = 8
    #: Requests that run at once; others wait in their order.
    max_running: int = 256
    #: SGLang refuses a request when this many wait; none is refused when null.
    max_queued: int | None = None
    ttft_seconds: float = 0.0
    inter_token_seconds: float = 0.0
    load_seconds: float = 0.0
