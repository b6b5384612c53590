"""What is read from the machine."""

from pathlib import Path

import pytest

from engines.launch import hardware
from engines.launch.hardware import computes_bfloat16, has_nvidia_gpu, resolve_device, resolve_dtype

OLD_CPU = "processor : 0\nflags\t\t: fpu sse avx2 avx512f\nprocessor : 1\n"
NEW_CPU = "processor : 0\nflags\t\t: fpu sse avx2 avx512f avx512_bf16\n"


def test_bfloat16_is_computed_only_where_the_processor_has_it() -> None:
    assert not computes_bfloat16(OLD_CPU)
    assert computes_bfloat16(NEW_CPU)
    assert not computes_bfloat16("processor : 0\n")


@pytest.mark.parametrize(("cpuinfo", "dtype"), [(OLD_CPU, "float32"), (NEW_CPU, "bfloat16")])
def test_dtype_auto_follows_the_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpuinfo: str, dtype: str
) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(cpuinfo)
    monkeypatch.setattr(hardware, "_CPUINFO", file)

    assert resolve_dtype("auto", "cpu") == dtype


def test_what_the_settings_say_wins() -> None:
    assert resolve_dtype("float16", "cpu") == "float16"
    assert resolve_device("cpu") == "cpu"
    assert resolve_device("cuda") == "cuda"


@pytest.mark.parametrize(
    ("script", "has_gpu"),
    [
        ("echo 'GPU 0: NVIDIA H100 (UUID: GPU-1)'", True),
        ("echo 'No devices were found'", False),
        ("echo 'GPU 0'; exit 9", False),
    ],
)
def test_gpu_is_there_when_its_driver_lists_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, has_gpu: bool
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    has_nvidia_gpu.cache_clear()

    try:
        assert has_nvidia_gpu() is has_gpu
    finally:
        has_nvidia_gpu.cache_clear()
