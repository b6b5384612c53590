"""vLLM's OpenAI server on the CPU, started quicker and mended in four places; vLLM itself is unmodified.

    python -m engines.launch.vllm_cpu_server --model FOLDER ...      (vLLM's own arguments)

1. `fork_the_engine`: its engine process is forked from this one, which has imported everything (10 s instead
   of 27 s to a ready server).
2. `compute_lora_by_runs`: LoRA four times as fast, and rows of the base model keep the base model's weights.
3. The forked engine lets go of the server's socket (`release_server_sockets`).
4. The forked engine dies with this process (`die_with_parent`).

Bound to one version: `assert_known_vllm` refuses to replace what it does not know.
"""

from __future__ import annotations

import gc
import hashlib
import importlib
import importlib.metadata
import inspect
import os
from collections.abc import Callable
from typing import Any

from engines.launch.forked_child import die_with_parent, release_server_sockets
from engines.launch.vllm_cpu_lora import adapter_runs, add_lora_to_linear, add_lora_to_logits

VLLM_CPU_VERSION = "0.32.0"

#: What is replaced below, and the start of the sha256 of its source in the version above.
_REPLACED = {
    "vllm.lora.punica_wrapper.punica_cpu:PunicaWrapperCPU.update_metadata": "d495e482e77f030a",
    "vllm.lora.punica_wrapper.punica_cpu:PunicaWrapperCPU.add_lora_linear": "60ca3d560987e8bb",
    "vllm.lora.punica_wrapper.punica_cpu:PunicaWrapperCPU.add_lora_logits": "ad70de0de3459e74",
    "vllm.platforms.cpu:CpuPlatform.check_and_update_config": "d2960ad5d1836767",
}

#: Imported before the fork, so that the engine process imports nothing.
_PRELOADED = (
    "vllm.v1.engine.async_llm",
    "vllm.v1.engine.core",
    "vllm.v1.worker.cpu_worker",
    "vllm.v1.executor.uniproc_executor",
    "vllm.v1.attention.backends.cpu_attn",
    "vllm.lora.worker_manager",
    "vllm.model_executor.models.llama",
)


def assert_known_vllm() -> None:
    """Refuse to go on with a vLLM whose replaced parts are not the ones that were looked at."""
    version = importlib.metadata.version("vllm-cpu")
    if version != VLLM_CPU_VERSION:
        raise SystemExit(f"This launcher knows vllm-cpu {VLLM_CPU_VERSION}, and {version} is installed.")
    for place, known_digest in _REPLACED.items():
        module, _, path = place.partition(":")
        replaced: Any = importlib.import_module(module)
        for name in path.split("."):
            replaced = getattr(replaced, name)
        digest = hashlib.sha256(inspect.getsource(replaced).encode()).hexdigest()[:16]
        if digest != known_digest:
            raise SystemExit(
                f"{path} of vllm-cpu {version} has changed ({digest}): look before you replace it."
            )


def fork_the_engine() -> None:
    """Have vLLM fork its engine process, from a process that has all it needs in memory.

    The platform class insists on "spawn"; it is asked first and then overruled. The model's class is
    registered by hand, which saves the 10 s subprocess that would inspect it on a first start.
    """
    for module in _PRELOADED:
        importlib.import_module(module)
    from vllm.model_executor.models.llama import LlamaForCausalLM
    from vllm.model_executor.models.registry import ModelRegistry
    from vllm.platforms.cpu import CpuPlatform

    ModelRegistry.register_model("LlamaForCausalLM", LlamaForCausalLM)
    check_and_update: Callable[[Any, Any], None] = CpuPlatform.check_and_update_config.__func__

    def check_and_update_then_fork(cls: Any, config: Any) -> None:
        check_and_update(cls, config)
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"

    CpuPlatform.check_and_update_config = classmethod(check_and_update_then_fork)
    os.register_at_fork(after_in_child=_prepare_forked_child)


def _prepare_forked_child() -> None:
    die_with_parent()
    release_server_sockets()


def compute_lora_by_runs() -> None:
    """Replace the CPU's LoRA operators by the ones of `vllm_cpu_lora`."""
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    update_metadata = PunicaWrapperCPU.update_metadata

    def update_metadata_and_runs(self: Any, *arguments: Any, **keywords: Any) -> None:
        update_metadata(self, *arguments, **keywords)
        self.linear_runs = adapter_runs(self.token_lora_indices.tolist())
        self.logits_runs = adapter_runs(self.sampler_indices.tolist())

    def add_lora_linear(
        self: Any,
        y: Any,
        x: Any,
        lora_a_stacked: Any,
        lora_b_stacked: Any,
        scale: float,
        output_slices: Any,
        **_: Any,
    ) -> None:
        add_lora_to_linear(y, x, lora_a_stacked, lora_b_stacked, scale, output_slices, self.linear_runs)

    def add_lora_logits(
        self: Any, y: Any, x: Any, lora_a_stacked: Any, lora_b_stacked: Any, scale: float, **_: Any
    ) -> None:
        add_lora_to_logits(y, x, lora_a_stacked, lora_b_stacked, scale, self.logits_runs)

    PunicaWrapperCPU.update_metadata = update_metadata_and_runs
    PunicaWrapperCPU.add_lora_linear = add_lora_linear
    PunicaWrapperCPU.add_lora_logits = add_lora_logits


def main() -> None:
    """Mend vLLM, then run its own server with this process's arguments."""
    from vllm.entrypoints.launchers.api_server import entry

    assert_known_vllm()
    fork_the_engine()
    compute_lora_by_runs()
    gc.collect()
    gc.freeze()  # keeps the forked engine from copying every page that the collector would touch
    entry.main()


if __name__ == "__main__":
    main()
