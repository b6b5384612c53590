"""How a local engine is started: what is asked for (`LaunchSpec`) and the command that does it (`Launcher`).

One file a launcher: `vllm_cpu.py`, `vllm_cuda.py`, `sglang_cpu.py`, `sglang_cuda.py`. `process.py` runs what
they return. A new engine is one new file and one line in `catalogue.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from engines.launch.hardware import Device, DType

#: Kinds of engine that can be started here (`openai` is always somebody else's server).
LocalEngineKind = Literal["vllm", "sglang"]


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """One local engine: what it serves, where it listens, within which limits."""

    kind: LocalEngineKind
    device: Device
    dtype: DType
    #: Python of the environment that the engine is installed in.
    python: Path
    #: Name of the base model, as the engine serves it.
    base_model: str
    model_path: Path
    host: str
    port: int
    #: Key that the engine asks of its callers.
    api_key: str
    log_path: Path
    #: Where the engine keeps what it computes once and uses again.
    cache_dir: Path
    #: Adapters in one batch.
    max_loras: int
    #: Adapters loaded at once.
    max_cpu_loras: int
    max_lora_rank: int
    #: Context length in tokens.
    max_model_len: int
    #: Where the engine sends its own spans (OTLP over HTTP); None: it makes none.
    otlp_traces_endpoint: str | None = None
    #: Further command-line arguments, last, so that they win.
    extra_arguments: tuple[str, ...] = ()

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Command:
    """A program to run: its arguments, and what is added to our environment for it."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]


class Launcher(Protocol):
    """Knows how one engine is started on one kind of device."""

    def command(self, spec: LaunchSpec) -> Command:
        """The command that starts the engine which `spec` describes."""
        ...


#: Every linear module of a Llama-like layer; adapters may touch any of them.
LORA_TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

#: No engine looks for models or reports usage on the network.
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "DO_NOT_TRACK": "1"}
