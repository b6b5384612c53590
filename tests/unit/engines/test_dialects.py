"""Reading what engines say: load figures, refusals, engine settings."""

from __future__ import annotations

import httpx
import pytest

from engines import sglang, vllm
from engines.connection import reason_of
from engines.drivers import parse_engine_url
from engines.engine import wire_model
from loraway.errors import EngineMismatch, InvalidRequest

VLLM_METRICS = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="smollm2-135m"} 2.0
vllm:num_requests_waiting{engine="0",model_name="smollm2-135m"} 3.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="smollm2-135m",reason="capacity"} 3.0
vllm:kv_cache_usage_perc{engine="0",model_name="smollm2-135m"} 0.25
vllm:lora_requests_info{max_lora="4",running_lora_adapters="old@1.abcdef",waiting_lora_adapters=""} 1.7e+09
vllm:lora_requests_info{running_lora_adapters="a@1.abcdef,b@2.abcdef",waiting_lora_adapters="c"} 1.8e+09
"""


def test_vllm_load_takes_the_newest_label_set_of_running_adapters() -> None:
    load = vllm.parse_load(VLLM_METRICS)
    assert (load.running, load.waiting, load.kv_cache_usage) == (2, 3, 0.25)
    assert load.running_adapters == {"a@1.abcdef", "b@2.abcdef"}


def test_vllm_adapters_of_an_idle_engine_are_not_running() -> None:
    idle = VLLM_METRICS.replace("} 2.0", "} 0.0")
    assert vllm.parse_load(idle).running_adapters == frozenset()


SGLANG_LOAD = {"num_running_reqs": 1, "num_waiting_reqs": 2, "token_usage": 0.1}


def test_sglang_load_is_its_schedulers() -> None:
    load = sglang.parse_load({"loads": [SGLANG_LOAD]})
    assert (load.running, load.waiting, load.kv_cache_usage) == (1, 2, 0.1)
    assert sglang.parse_load({"loads": []}).running == 0


def test_an_engine_that_is_data_parallel_inside_is_refused() -> None:
    with pytest.raises(EngineMismatch, match="2 engines"):
        sglang.parse_load({"loads": [SGLANG_LOAD, SGLANG_LOAD]})
    second_core = VLLM_METRICS + 'vllm:num_requests_running{engine="1",model_name="smollm2-135m"} 0.0\n'
    with pytest.raises(EngineMismatch, match="2 engines"):
        vllm.parse_load(second_core)


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "the reason", "type": "t", "param": None, "code": 400}},
        {"object": "error", "message": "the reason", "code": 400},
        {"success": False, "error_message": "the reason"},
        {"detail": "the reason"},
        {"error": "the reason"},
    ],
)
def test_the_reason_is_found_in_every_shape(body: dict[str, object]) -> None:
    assert reason_of(httpx.Response(400, json=body)) == "the reason"


def test_the_reason_may_be_plain_text() -> None:
    assert reason_of(httpx.Response(500, text="the reason")) == "the reason"


def test_sglang_is_never_asked_for_a_bare_adapter_name() -> None:
    assert wire_model("sglang", "base", "a@1.abcdef") == "base:a@1.abcdef"
    assert wire_model("vllm", "base", "a@1.abcdef") == "a@1.abcdef"
    assert wire_model("sglang", "base", None) == "base"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://127.0.0.1:9/", ("vllm", "http://127.0.0.1:9")),
        ("sglang=http://h:1", ("sglang", "http://h:1")),
        ("openai=https://h/x?a=b", ("openai", "https://h/x?a=b")),
        ("http://h:1/?a=b", ("vllm", "http://h:1/?a=b")),
    ],
)
def test_an_engine_setting_is_a_kind_and_a_url(text: str, expected: tuple[str, str]) -> None:
    assert parse_engine_url(text) == expected


@pytest.mark.parametrize("text", ["", "tgi=http://h:1", "h:1", "vllm="])
def test_an_engine_setting_that_is_no_url_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_engine_url(text)
