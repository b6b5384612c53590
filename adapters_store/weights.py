"""What may become a version: a PEFT folder with safetensors weights, checked without loading them."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from adapters_store.manifest import MANIFEST_NAME
from loraway.errors import InvalidRequest

WEIGHTS_NAME = "adapter_model.safetensors"
CONFIG_NAME = "adapter_config.json"

#: PEFT writes this model card beside the weights; no engine reads it.
_LEFT_OUT = frozenset({"README.md", MANIFEST_NAME})
_ACCEPTED_SUFFIXES = frozenset({".safetensors", ".json"})
_LARGEST_HEADER_BYTES = 64 << 20


def adapter_files(folder: Path) -> list[Path]:
    """The files of a version in this folder, by name.

    Raises InvalidRequest when the weights or their configuration are missing or broken, or when there is
    anything that is neither safetensors nor JSON: pickles run code when they are read.
    """
    files = [path for path in sorted(folder.iterdir()) if path.name not in _LEFT_OUT]
    for path in files:
        if path.is_symlink() or not path.is_file() or path.suffix not in _ACCEPTED_SUFFIXES:
            raise InvalidRequest(
                f"An adapter is made of .safetensors and .json files only; {path.name!r} is neither."
            )
    names = {path.name for path in files}
    for needed in (WEIGHTS_NAME, CONFIG_NAME):
        if needed not in names:
            raise InvalidRequest(f"The adapter has no {needed}.")
    for path in files:
        if path.suffix == ".safetensors":
            check_safetensors(path)
    return files


def read_rank(folder: Path) -> int:
    """The LoRA rank that the folder's configuration names. Raises InvalidRequest."""
    try:
        config = json.loads((folder / CONFIG_NAME).read_bytes())
        rank = config["r"]
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidRequest(f"{CONFIG_NAME} is not a PEFT LoRA configuration: no rank 'r' in it.") from error
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise InvalidRequest(f"{CONFIG_NAME} has rank {rank!r}; a rank is a whole number from 1 on.")
    return rank


def check_safetensors(path: Path) -> None:
    """Raise InvalidRequest unless the header is whole and its tensors fill the file exactly.

    Layout: 8 bytes little-endian header length, the header as JSON, then the tensors' bytes
    (https://github.com/huggingface/safetensors#format).
    """
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        header_bytes = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else _LARGEST_HEADER_BYTES + 1
        if header_bytes > min(_LARGEST_HEADER_BYTES, size_bytes - 8):
            raise InvalidRequest(f"{path.name} is cut off or is not a safetensors file.")
        text = file.read(header_bytes)
    try:
        header = json.loads(text)
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        tensor_bytes = max(ends, default=0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise InvalidRequest(f"{path.name} has a broken safetensors header.") from error
    if not ends or 8 + header_bytes + tensor_bytes != size_bytes:
        raise InvalidRequest(f"{path.name} does not hold the tensors that its header lists.")
