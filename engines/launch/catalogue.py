"""From settings to a running engine's description: which launchers exist and what they are asked for."""

from __future__ import annotations

import os
import random
import socket
import sys
from pathlib import Path

from engines.launch.hardware import Device, resolve_device, resolve_dtype
from engines.launch.launcher import Command, Launcher, LaunchSpec, LocalEngineKind
from engines.launch.sglang_cpu import SGLangOnCPU
from engines.launch.sglang_cuda import SGLangOnCUDA
from engines.launch.vllm_cpu import VLLMOnCPU
from engines.launch.vllm_cuda import VLLMOnCUDA
from loraway.errors import EngineUnreachable, Unavailable
from loraway.settings import Settings

LAUNCHERS: dict[tuple[LocalEngineKind, Device], Launcher] = {
    ("vllm", "cpu"): VLLMOnCPU(),
    ("vllm", "cuda"): VLLMOnCUDA(),
    ("sglang", "cpu"): SGLangOnCPU(),
    ("sglang", "cuda"): SGLangOnCUDA(),
}

_OUTGOING_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST_PORT = 20_000
_PORTS_TRIED = 200


def spec_for(kind: LocalEngineKind, settings: Settings, *, port: int, api_key: str) -> LaunchSpec:
    """What to start for this kind of engine, as the settings have it.

    Raises `EngineUnreachable` when SGLang is asked for and its environment is not there.
    """
    engine = settings.engine
    device = resolve_device(engine.device)
    data_dir = settings.data_dir.resolve()
    return LaunchSpec(
        kind=kind,
        device=device,
        dtype=resolve_dtype(engine.dtype, device),
        python=Path(sys.executable) if kind == "vllm" else _sglang_python(engine.sglang_python),
        base_model=engine.base_model,
        model_path=settings.model_path.resolve(),
        host="127.0.0.1",
        port=port,
        api_key=api_key,
        log_path=settings.logs_dir / f"engine-{kind}.log",
        cache_dir=data_dir / "cache" / kind,
        max_loras=engine.max_loras,
        max_cpu_loras=engine.max_cpu_loras,
        max_lora_rank=engine.max_lora_rank,
        max_model_len=engine.max_model_len,
        otlp_traces_endpoint=_traces_endpoint(settings.telemetry.otlp_endpoint),
    )


def command_for(spec: LaunchSpec) -> Command:
    """The command that starts this engine."""
    return LAUNCHERS[spec.kind, spec.device].command(spec)


def choose_port(host: str = "127.0.0.1") -> int:
    """A TCP port that is free now and will likely be when a slow server binds it, or binds it once more.

    Taken from below the range of which the system gives each outgoing connection a port. From inside it, any
    connection could take the port before the engine has it; and one that polls the port itself could be given
    that very port, connect to itself, and hold it.
    """
    first_outgoing = int(_OUTGOING_PORTS.read_text(encoding="ascii").split()[0])
    candidates = range(_LOWEST_PORT, first_outgoing)
    tried = random.SystemRandom().sample(candidates, k=min(_PORTS_TRIED, len(candidates)))
    for port in (*tried, 0):  # 0: what the system gives, where nothing below the range is free
        with socket.socket() as listening:
            try:
                listening.bind((host, port))
            except OSError:  # taken
                continue
            chosen: int = listening.getsockname()[1]
            return chosen
    raise Unavailable(f"No TCP port is free on {host}.")


def _sglang_python(setting: Path | None) -> Path:
    """The Python of SGLang's own environment: beside ours unless the settings say otherwise."""
    python = setting or Path(sys.prefix).parent / ".venv-sglang" / "bin" / "python"
    if not python.exists():
        raise EngineUnreachable(
            "SGLang's own environment is not installed. Run `make setup-sglang`, or set engine.sglang_python."
        )
    return python.absolute()  # not resolve(): a virtual environment's python is a link


def _traces_endpoint(setting: str | None) -> str | None:
    """Where OTLP traces go, as the OpenTelemetry specification derives it from the base endpoint."""
    specific = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    if setting is None and specific:
        return specific
    base = setting or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    return f"{base.rstrip('/')}/v1/traces" if base else None
