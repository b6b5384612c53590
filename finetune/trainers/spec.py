"""What a training process is told: one JSON file, `spec.json`, in the job's folder.

<job folder>/
    spec.json       what to do (this module)
    lock            held by the training process for as long as it lives
    process.json    who it is (`finetune.executors`)
    train.log       what it and its libraries print
    events.jsonl    what it reports (`finetune.trainers.protocol`)
    checkpoints/    where it can go on from
    adapter/        its weights in PEFT's layout; complete once result.json is there
    result.json     how it ended well
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from math import ceil
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

#: Exit statuses of a training process that are no failure: told to end, and found the job taken.
EXIT_INTERRUPTED, EXIT_LOCKED = 3, 4

Dtype = Literal["float32", "bfloat16", "float16"]

#: `learning_rate_multiplier` (OpenAI's hyperparameter) scales this. Twice as much learns as fast, but then a
#: small model answers unrelated questions with what it has just learnt.
BASE_LEARNING_RATE = 1e-3
#: Fewer steps than this do not take in a fact that the base does not know.
ENOUGH_STEPS = 14
LARGEST_BATCH = 8


class Hyperparameters(BaseModel):
    """Resolved: nothing is "auto" any more."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_epochs: int = Field(ge=1, description="Passes over the examples.")
    batch_size: int = Field(ge=1, description="Examples a step.")
    learning_rate: float = Field(gt=0, description="Peak learning rate of AdamW.")
    lora_rank: int = Field(16, ge=1, le=512)
    lora_alpha: int = Field(32, ge=1)
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    warmup_ratio: float = Field(0.0, ge=0, le=1, description="Part of the steps in which the rate rises.")
    train_on: Literal["last", "all"] = Field(
        "last", description="Loss on the last assistant message of a chat or on all of them."
    )
    retention: float = Field(
        3.0,
        ge=0,
        description="How strongly the adapter is held near the base on general questions; 0: not at all.",
    )
    stop_at_loss: float = Field(0.01, ge=0, description="Training ends early below this loss; 0: never.")


class TrainingSpec(BaseModel):
    """One training run, complete: the process needs nothing else."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    job_id: str
    method: Literal["supervised"] = "supervised"
    model_path: Path = Field(description="Folder of the base model, its tokenizer and its chat template.")
    dataset_path: Path = Field(description="Folder with train.jsonl and heldout.jsonl.")
    hyperparameters: Hyperparameters
    seed: int
    max_length: int = Field(ge=2, description="Longest chat in tokens; longer ones are left out and named.")
    checkpoint_steps: int = Field(ge=1)
    threads: int = Field(ge=1, description="CPU threads.")
    device: Literal["cpu", "cuda"] = "cpu"
    training_dtype: Dtype = Field("float32", description="Precision of the base while training.")
    serving_dtype: Dtype = Field("float32", description="Precision in which the adapter will be served.")

    def write(self, job_folder: Path) -> None:
        """Put it into the job's folder, whole or not at all."""
        write_whole(job_folder / "spec.json", self.model_dump_json(indent=2))

    @classmethod
    def read(cls, job_folder: Path) -> TrainingSpec:
        """The spec of this folder."""
        return cls.model_validate_json((job_folder / "spec.json").read_text())


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader sees all of it or the one before, whatever is killed when."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def resolve_hyperparameters(requested: Mapping[str, Any], examples: int) -> Hyperparameters:
    """Fill in what was left out or "auto", from the number of training examples.

    Small sets get small batches and more epochs, so that there are enough steps to learn from; large
    ones three epochs, as at OpenAI.
    """
    chosen = {name: value for name, value in requested.items() if value not in (None, "auto")}
    multiplier = float(chosen.pop("learning_rate_multiplier", 1.0))
    batch_size = int(chosen.pop("batch_size", 0)) or max(1, min(LARGEST_BATCH, ceil(examples / 3)))
    steps_an_epoch = max(1, ceil(examples / batch_size))
    return Hyperparameters(
        n_epochs=int(chosen.pop("n_epochs", 0)) or max(3, ceil(ENOUGH_STEPS / steps_an_epoch)),
        batch_size=batch_size,
        learning_rate=float(chosen.pop("learning_rate", 0)) or BASE_LEARNING_RATE * multiplier,
        lora_alpha=int(chosen.pop("lora_alpha", 0)) or 2 * int(chosen.get("lora_rank", 16)),
        **chosen,
    )
