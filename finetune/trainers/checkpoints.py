"""Checkpoints without pickles: safetensors and JSON, complete or not there.

transformers stores optimiser, schedule and random state by torch.save. These are the same states in two
files of our own, so that nothing that is ever loaded can run code; the folder layout stays transformers'.
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy
import torch
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file, save_file

from finetune.trainers.spec import write_whole

_TENSORS = "training_state.safetensors"
_REST = "training_state.json"
#: Written last: a checkpoint without it was cut short.
_COMPLETE = "complete.json"
_PREFIX = "checkpoint-"


class CheckpointNote(BaseModel):
    """What the run knew at a checkpoint, beside weights and optimiser."""

    model_config = ConfigDict(frozen=True)

    step: int
    #: Losses of the steps so far, the newest last.
    losses: list[float]
    tokens: int
    #: No step follows: the plan is done or the loss is low enough.
    is_last: bool

    def write(self, checkpoint: Path) -> None:
        write_whole(checkpoint / _COMPLETE, self.model_dump_json())

    @classmethod
    def read(cls, checkpoint: Path) -> CheckpointNote:
        return cls.model_validate_json((checkpoint / _COMPLETE).read_text())


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint; half ones are removed."""
    complete: dict[int, Path] = {}
    for path in folder.glob(f"{_PREFIX}*"):
        if (path / _COMPLETE).exists():
            complete[int(path.name.removeprefix(_PREFIX))] = path
        else:
            shutil.rmtree(path)
    return complete[max(complete)] if complete else None


def save_optimizer(folder: Path, optimizer: Any, scheduler: Any) -> None:
    """Store the states of optimiser and learning rate schedule."""
    state = optimizer.state_dict()
    tensors = {
        f"{parameter}.{name}": torch.as_tensor(value).contiguous()
        for parameter, values in state["state"].items()
        for name, value in values.items()
    }
    save_file(tensors, folder / _TENSORS)
    rest = {"param_groups": state["param_groups"], "scheduler": scheduler.state_dict()}
    write_whole(folder / _REST, json.dumps(rest))


def load_optimizer(folder: Path, optimizer: Any, scheduler: Any) -> None:
    """Put the stored states back."""
    state: dict[int, dict[str, Any]] = {}
    for key, tensor in load_file(folder / _TENSORS).items():
        parameter, name = key.split(".", 1)
        state.setdefault(int(parameter), {})[name] = tensor
    rest = json.loads((folder / _REST).read_text())
    optimizer.load_state_dict({"state": state, "param_groups": rest["param_groups"]})
    scheduler.load_state_dict(rest["scheduler"])


def save_random_state(folder: Path) -> None:
    """Store the state of Python's, numpy's and torch's generators."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = numpy.random.get_state(legacy=True)
    state = {
        "python": [version, list(words), gauss],
        "numpy": [str(kind), [int(key) for key in keys], int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state().tolist(),
        "cuda": [s.tolist() for s in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else [],
    }
    write_whole(folder / "random_state.json", json.dumps(state))


def load_random_state(folder: Path) -> None:
    """Put the generators back to where they were."""
    state = json.loads((folder / "random_state.json").read_text())
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, *rest = state["numpy"]
    numpy.random.set_state((kind, numpy.array(keys, dtype=numpy.uint32), *rest))
    torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
    if state["cuda"]:
        torch.cuda.set_rng_state_all([torch.tensor(s, dtype=torch.uint8) for s in state["cuda"]])
