"""What each launcher runs."""

import random
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from engines.launch.catalogue import choose_port, command_for, spec_for
from engines.launch.launcher import LaunchSpec
from engines.launch.sglang_cpu import STAND_INS
from loraway.errors import EngineUnreachable
from loraway.settings import Settings


@pytest.fixture
def vllm_spec(tmp_path: Path) -> LaunchSpec:
    return LaunchSpec(
        kind="vllm",
        device="cpu",
        dtype="float32",
        python=Path("/env/bin/python"),
        base_model="base",
        model_path=tmp_path / "model",
        host="127.0.0.1",
        port=9001,
        api_key="secret-key",
        log_path=tmp_path / "engine.log",
        cache_dir=tmp_path / "cache",
        max_loras=4,
        max_cpu_loras=8,
        max_lora_rank=32,
        max_model_len=2048,
    )


@pytest.fixture
def sglang_spec(vllm_spec: LaunchSpec) -> LaunchSpec:
    return replace(vllm_spec, kind="sglang")


def option(arguments: tuple[str, ...], name: str) -> str:
    return arguments[arguments.index(name) + 1]


def test_vllm_on_cpu_gets_the_limits_and_runs_through_our_server(vllm_spec: LaunchSpec) -> None:
    arguments = command_for(vllm_spec).arguments

    assert arguments[:3] == ("/env/bin/python", "-m", "engines.launch.vllm_cpu_server")
    assert option(arguments, "--served-model-name") == "base"
    assert option(arguments, "--port") == "9001"
    assert option(arguments, "--dtype") == "float32"
    assert option(arguments, "--max-loras") == "4"
    assert option(arguments, "--max-cpu-loras") == "8"
    assert option(arguments, "--max-lora-rank") == "32"
    assert option(arguments, "--max-model-len") == "2048"
    assert "--enforce-eager" in arguments


def test_vllm_on_a_gpu_is_stock_vllm(vllm_spec: LaunchSpec) -> None:
    arguments = command_for(replace(vllm_spec, device="cuda", dtype="bfloat16")).arguments

    assert "engines.launch.vllm_cpu_server" not in arguments
    assert "--enforce-eager" not in arguments
    assert option(arguments, "--dtype") == "bfloat16"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_vllm_takes_its_key_where_a_list_of_processes_does_not_show_it(
    vllm_spec: LaunchSpec, device: str
) -> None:
    command = command_for(replace(vllm_spec, device="cuda" if device == "cuda" else "cpu"))

    assert command.environment["VLLM_API_KEY"] == "secret-key"
    assert not any("secret-key" in argument for argument in command.arguments)
    assert command.environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "True"


def test_vllm_sends_spans_only_when_an_endpoint_is_given(vllm_spec: LaunchSpec) -> None:
    silent = command_for(vllm_spec)
    traced = command_for(replace(vllm_spec, otlp_traces_endpoint="http://127.0.0.1:4318/v1/traces"))

    assert "--otlp-traces-endpoint" not in silent.arguments
    assert option(traced.arguments, "--otlp-traces-endpoint") == "http://127.0.0.1:4318/v1/traces"
    assert traced.environment["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] == "http/protobuf"


def test_sglang_gets_one_more_place_in_a_batch_because_its_base_model_takes_one(
    sglang_spec: LaunchSpec,
) -> None:
    arguments = command_for(sglang_spec).arguments

    assert option(arguments, "--max-loras-per-batch") == "5"
    assert option(arguments, "--max-loaded-loras") == "8"
    assert option(arguments, "--max-lora-rank") == "32"
    modules = arguments[arguments.index("--lora-target-modules") + 1 :][:7]
    assert set(modules) == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_stand_ins_are_on_the_path_of_sglang_on_cpu_and_never_where_there_is_a_gpu(
    sglang_spec: LaunchSpec,
) -> None:
    on_cpu = command_for(sglang_spec)
    on_gpu = command_for(replace(sglang_spec, device="cuda"))

    assert on_cpu.environment["PYTHONPATH"] == str(STAND_INS)
    assert (STAND_INS / "sgl_kernel" / "__init__.py").is_file()
    assert "PYTHONPATH" not in on_gpu.environment
    assert "torch_native" not in on_gpu.arguments


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_extra_arguments_come_last_so_that_they_win(vllm_spec: LaunchSpec, kind: str) -> None:
    spec = replace(vllm_spec, kind="sglang" if kind == "sglang" else "vllm", extra_arguments=("--x", "1"))

    assert command_for(spec).arguments[-2:] == ("--x", "1")


def test_spec_is_what_the_settings_say(tmp_path: Path) -> None:
    settings = Settings.model_validate(
        {
            "data_dir": tmp_path,
            "engine": {"device": "cpu", "dtype": "float32", "max_loras": 2, "base_model": "m"},
            "telemetry": {"otlp_endpoint": "http://127.0.0.1:4318/"},
        }
    )

    spec = spec_for("vllm", settings, port=1234, api_key="k")

    assert (spec.device, spec.dtype, spec.max_loras) == ("cpu", "float32", 2)
    assert spec.url == "http://127.0.0.1:1234"
    assert spec.model_path == tmp_path / "models" / "m"
    assert spec.log_path.is_relative_to(tmp_path)
    assert spec.otlp_traces_endpoint == "http://127.0.0.1:4318/v1/traces"


def test_traces_go_where_the_standard_variables_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(data_dir=tmp_path)
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", raising=False)
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    assert spec_for("vllm", settings, port=1, api_key="k").otlp_traces_endpoint is None

    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    assert (
        spec_for("vllm", settings, port=1, api_key="k").otlp_traces_endpoint == "http://127.0.0.1:1/v1/traces"
    )

    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:2/t")
    assert spec_for("vllm", settings, port=1, api_key="k").otlp_traces_endpoint == "http://127.0.0.1:2/t"


def test_missing_sglang_environment_is_named_with_what_to_do(tmp_path: Path) -> None:
    settings = Settings.model_validate(
        {"data_dir": tmp_path, "engine": {"sglang_python": tmp_path / "no" / "python"}}
    )

    with pytest.raises(EngineUnreachable, match="make setup-sglang"):
        spec_for("sglang", settings, port=1, api_key="k")


def test_chosen_port_can_be_bound_and_is_none_that_an_outgoing_connection_may_get() -> None:
    first_outgoing = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = {choose_port() for _ in range(20)}

    assert len(ports) > 1
    for port in ports:
        assert 1024 < port < first_outgoing
        socket.create_server(("127.0.0.1", port)).close()


def test_a_taken_port_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken, socket.socket() as free:
        taken.bind(("127.0.0.1", 0))
        free.bind(("127.0.0.1", 0))
        free_port = free.getsockname()[1]
        free.close()
        monkeypatch.setattr(random.SystemRandom, "sample", lambda *_, k: [taken.getsockname()[1], free_port])

        assert choose_port() == free_port
