"""Base models as folders: which one is embedded, whether a folder is complete, what its chat template is.

Nothing here imports torch or transformers, so every process may use it. The folder of the embedded model is
made once by `python -m engines.launch.prepare_model FOLDER`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from loraway.errors import NotFound

#: The base model that comes with loraway: SmolLM2-135M-Instruct (Apache-2.0).
EMBEDDED_MODEL = "smollm2-135m"

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def is_prepared(folder: Path) -> bool:
    """Whether the folder holds a model with its tokenizer (it appears by one rename, so never half)."""
    has_weights = any((folder / name).is_file() for name in _WEIGHTS)
    return has_weights and (folder / "config.json").is_file() and (folder / "tokenizer.json").is_file()


def chat_template(folder: Path) -> str:
    """The model's chat template, a Jinja source.

    Read from `chat_template.jinja`, or from `tokenizer_config.json` where older models keep it.
    Raises `NotFound` when the model has none.
    """
    template = folder / "chat_template.jinja"
    if template.is_file():
        return template.read_text(encoding="utf-8")
    tokenizer_config = folder / "tokenizer_config.json"
    if tokenizer_config.is_file():
        source = json.loads(tokenizer_config.read_text(encoding="utf-8")).get("chat_template")
        if isinstance(source, str):
            return source
    raise NotFound(f"The base model {folder.name!r} has no chat template; training and serving need it.")


def template_sha256(folder: Path) -> str:
    """The sha256 of the chat template, in hex: equal hashes mean training and serving see the same prompt."""
    return hashlib.sha256(chat_template(folder).encode("utf-8")).hexdigest()


def base_revision(folder: Path) -> str:
    """The sha256 of config.json and of the weight files' names and sizes, in hex; cheap to compute."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for weights in sorted(folder.glob("*.safetensors")):
        digest.update(f"{weights.name} {weights.stat().st_size}\n".encode())
    return digest.hexdigest()
