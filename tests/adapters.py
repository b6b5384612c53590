"""Random LoRA adapters in PEFT's layout: real ones for a real engine, tiny ones for the simulator."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from safetensors.numpy import save_file

_MODULES = {
    "q_proj": "self_attn",
    "k_proj": "self_attn",
    "v_proj": "self_attn",
    "o_proj": "self_attn",
    "gate_proj": "mlp",
    "up_proj": "mlp",
    "down_proj": "mlp",
}
#: Spread of `lora_B`: large enough to change a 2-layer model's answers visibly.
_SPREAD = 0.4


@dataclass(frozen=True, slots=True)
class ModelSize:
    """The sizes of a Llama-like model that an adapter must fit."""

    layers: int
    hidden: int
    key_value: int
    intermediate: int

    @classmethod
    def read(cls, model_folder: Path) -> Self:
        config = json.loads((model_folder / "config.json").read_bytes())
        heads = config["num_attention_heads"]
        head = config.get("head_dim") or config["hidden_size"] // heads
        return cls(
            layers=config["num_hidden_layers"],
            hidden=config["hidden_size"],
            key_value=head * config["num_key_value_heads"],
            intermediate=config["intermediate_size"],
        )

    def of(self, module: str) -> tuple[int, int]:
        """Inputs and outputs of a linear layer."""
        outputs = {"k_proj": self.key_value, "v_proj": self.key_value}
        outputs |= {"gate_proj": self.intermediate, "up_proj": self.intermediate}
        inputs = self.intermediate if module == "down_proj" else self.hidden
        return inputs, outputs.get(module, self.hidden)


TINY = ModelSize(layers=1, hidden=8, key_value=4, intermediate=8)


def write_adapter(
    folder: Path,
    seed: int,
    *,
    rank: int = 8,
    size: ModelSize = TINY,
    base_model: str = "smollm2-135m",
    spread: float = _SPREAD,
) -> Path:
    """Write an adapter whose weights follow from the seed; returns its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    weights: dict[str, np.ndarray] = {}
    for layer in range(size.layers):
        for module, block in _MODULES.items():
            inputs, outputs = size.of(module)
            prefix = f"base_model.model.model.layers.{layer}.{block}.{module}"
            a = random.standard_normal((rank, inputs), dtype=np.float32) / np.sqrt(inputs)
            weights[f"{prefix}.lora_A.weight"] = a.astype(np.float32)
            weights[f"{prefix}.lora_B.weight"] = (
                random.standard_normal((outputs, rank), dtype=np.float32) * spread
            )
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "target_modules": list(_MODULES),
        "bias": "none",
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
