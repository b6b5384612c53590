"""The pin files, as an installer reads them."""

from pathlib import Path

import pytest

REQUIREMENTS = Path(__file__).parents[3] / "requirements"
#: The files that are installed together, one environment a row.
ENVIRONMENTS = {
    "ours, cpu": ["torch-cpu", "vllm-cpu", "finetune", "gateway", "model", "dev", "loadtest"],
    "sglang, cpu": ["torch-cpu", "sglang-cpu"],
}


def pins(name: str) -> list[str]:
    lines = (REQUIREMENTS / f"{name}.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("file", sorted(REQUIREMENTS.glob("*.txt")), ids=lambda file: file.stem)
def test_every_line_pins_one_exact_version_and_names_no_place(file: Path) -> None:
    for line in pins(file.stem):
        name, separator, version = line.partition("==")
        assert separator, line
        assert name
        assert version[0].isdigit()
        assert not set(line) & set(" ;/@"), line


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_files_of_one_environment_agree_on_every_version(environment: str) -> None:
    versions: dict[str, set[str]] = {}
    for file in ENVIRONMENTS[environment]:
        for line in pins(file):
            name, _, version = line.partition("==")
            versions.setdefault(name.lower().replace("_", "-").replace(".", "-"), set()).add(version)

    assert {name: found for name, found in versions.items() if len(found) > 1} == {}


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_no_cuda_package_comes_to_a_machine_without_a_gpu(environment: str) -> None:
    names = [line for file in ENVIRONMENTS[environment] for line in pins(file)]

    assert [line for line in names if line.startswith(("nvidia", "cuda", "cupy", "sgl-kernel"))] == []
    assert [line for line in names if line.startswith("torch==")] == ["torch==2.13.0+cpu"]


def test_a_gateway_needs_no_heavy_library() -> None:
    heavy = ("torch", "transformers", "trl", "peft", "vllm", "sglang", "ray")

    assert [line for line in pins("gateway") if line.startswith(heavy)] == []
