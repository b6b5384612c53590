"""What this machine can compute with: an NVIDIA GPU, bfloat16 on the processor."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Literal

Device = Literal["cpu", "cuda"]
DType = Literal["float32", "bfloat16", "float16"]

_CPUINFO = Path("/proc/cpuinfo")


@cache
def has_nvidia_gpu() -> bool:
    """Whether the driver answers and lists at least one GPU."""
    nvidia_smi = shutil.which("nvidia-smi")
    if nvidia_smi is None:
        return False
    try:
        listing = subprocess.run([nvidia_smi, "-L"], capture_output=True, text=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return False
    return listing.returncode == 0 and "GPU " in listing.stdout


def computes_bfloat16(cpuinfo: str | None = None) -> bool:
    """Whether the processor multiplies bfloat16; where it does not, bfloat16 is slower than float32."""
    text = cpuinfo if cpuinfo is not None else _CPUINFO.read_text(encoding="utf-8")
    flags: set[str] = set()
    for line in text.splitlines():
        if line.startswith("flags"):
            flags = set(line.partition(":")[2].split())
            break
    return not flags.isdisjoint({"avx512_bf16", "amx_bf16"})


def resolve_device(setting: Literal["auto", "cpu", "cuda"]) -> Device:
    """The device an engine runs on."""
    if setting != "auto":
        return setting
    return "cuda" if has_nvidia_gpu() else "cpu"


def resolve_dtype(setting: Literal["auto", "float32", "bfloat16", "float16"], device: Device) -> DType:
    """The precision an engine computes in."""
    if setting != "auto":
        return setting
    if device == "cuda" or computes_bfloat16():
        return "bfloat16"
    return "float32"
