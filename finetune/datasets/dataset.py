"""A dataset: an immutable snapshot of examples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from loraway.ids import DatasetId, ProjectId

TRAIN_NAME = "train.jsonl"
HELD_OUT_NAME = "heldout.jsonl"
MANIFEST_NAME = "manifest.json"


class DatasetContent(BaseModel):
    """`manifest.json`: what the folder holds, nothing of where it came from. Its sha256 names the folder."""

    model_config = ConfigDict(frozen=True)

    format: str = "loraway-chat-1"
    train_examples: int
    held_out_examples: int
    files: dict[str, str] = Field(description="sha256 of each file.")


class DatasetSource(BaseModel):
    """Where a dataset came from; kept in its row."""

    model_config = ConfigDict(frozen=True)

    training_file: str | None = None
    validation_file: str | None = None
    traffic: dict[str, object] | None = None
    left_out: dict[str, int] = Field({}, description="How many were left out, by reason.")


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset of a project. Its folder is never changed."""

    dataset_id: DatasetId
    project_id: ProjectId
    sha256: str
    #: Holds `train.jsonl`, `heldout.jsonl` and `manifest.json`.
    path: Path
    content: DatasetContent
    source: DatasetSource
    created_at: float

    @property
    def train_examples(self) -> int:
        return self.content.train_examples

    @property
    def held_out_examples(self) -> int:
        return self.content.held_out_examples
