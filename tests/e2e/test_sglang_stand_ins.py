"""What SGLang's stand-ins for a CPU mend, in SGLang's own environment."""

from __future__ import annotations

import os
import signal
import subprocess
import textwrap
from pathlib import Path

import pytest

from engines.launch.catalogue import spec_for
from engines.launch.sglang_cpu import STAND_INS
from loraway.settings import Settings


@pytest.fixture(scope="module")
def sglang_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = Settings.model_validate({"data_dir": tmp_path_factory.mktemp("data")})
    return spec_for("sglang", settings, port=1, api_key="k").python


def run(python: Path, program: str, *, with_stand_ins: bool = True) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if with_stand_ins:
        environment["PYTHONPATH"] = str(STAND_INS)
    return subprocess.run(
        [python, "-c", textwrap.dedent(program)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_torchvision_imports_though_its_operators_are_for_cuda(sglang_python: Path) -> None:
    program = "import torchvision; print(torchvision.__version__)"

    assert run(sglang_python, program, with_stand_ins=False).returncode != 0
    assert run(sglang_python, program).returncode == 0


def test_only_processes_spawned_by_multiprocessing_are_tied_to_their_parent(sglang_python: Path) -> None:
    """Read back with PR_GET_PDEATHSIG (2) in the program itself and in a process that it spawns."""
    result = run(
        sglang_python,
        """
        import multiprocessing
        READ = "(c := __import__('ctypes'), s := c.c_int(), c.CDLL(None).prctl(2, c.byref(s)), s.value)[-1]"
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            print(eval(READ), pool.apply(eval, (READ,)))
        """,
    )

    assert result.stdout.split() == ["0", str(int(signal.SIGKILL))], result.stderr


def test_pinned_memory_is_ordinary_memory(sglang_python: Path) -> None:
    pinning = "torch.zeros(2, pin_memory=True); print(torch.ones(3).pin_memory().sum().item())"

    assert run(sglang_python, f"import torch; {pinning}").returncode != 0
    mended = run(sglang_python, f"import sgl_kernel, torch; {pinning}")
    assert mended.stdout == "3.0\n", mended.stderr


def test_new_cache_places_go_into_each_requests_row(sglang_python: Path) -> None:
    result = run(
        sglang_python,
        """
        import torch
        from sgl_kernel import assign_req_to_token_pool_cpu
        table = torch.zeros(3, 5, dtype=torch.int32)
        assign_req_to_token_pool_cpu(
            torch.tensor([2, 0]), table, torch.tensor([1, 0]), torch.tensor([4, 2]),
            torch.tensor([11, 12, 13, 21, 22]), 5,
        )
        print(table.tolist())
        """,
    )

    assert result.stdout == "[[21, 22, 0, 0, 0], [0, 0, 0, 0, 0], [0, 11, 12, 13, 0]]\n", result.stderr


def test_a_kernel_that_is_not_there_can_be_imported_and_says_so_when_called(sglang_python: Path) -> None:
    result = run(sglang_python, "from sgl_kernel import some_kernel; some_kernel(1)")

    assert result.returncode == 1
    assert "sgl_kernel.some_kernel has no implementation for this CPU" in result.stderr
