"""What a training process reports: `events.jsonl`, one event a line, appended only.

Written by one process at a time (the holder of the job's lock), followed by the trainer. A process killed
in the middle of a line leaves a torn one; the next process ends it with a newline and the reader skips it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from adapters_store.manifest import ReferenceGeneration
from finetune.trainers.spec import write_whole

EVENTS_NAME = "events.jsonl"
RESULT_NAME = "result.json"


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True)

    at: float = Field(default_factory=time.time, description="Seconds since the epoch.")


class Started(_Event):
    """A process has taken the job up, from the beginning or from a checkpoint."""

    type: Literal["started"] = "started"
    pid: int
    from_step: int
    total_steps: int


class Progress(_Event):
    """One optimiser step is done."""

    type: Literal["progress"] = "progress"
    step: int
    total_steps: int
    loss: float = Field(description="Mean over the completion tokens of this step's batch.")
    drift: float = Field(0.0, description="Mean KL divergence from the base on general questions, a token.")
    learning_rate: float
    tokens: int = Field(description="Tokens trained on so far, prompts included, padding not.")
    tokens_per_second: float
    seconds_left: float


class Message(_Event):
    """Something a person should read."""

    type: Literal["message"] = "message"
    level: Literal["info", "warn", "error"] = "info"
    text: str


class Checkpoint(_Event):
    """From here training can go on."""

    type: Literal["checkpoint"] = "checkpoint"
    step: int
    loss: float


class Evaluating(_Event):
    """Training is over, the comparison with the base begins."""

    type: Literal["evaluating"] = "evaluating"
    step: int
    total_steps: int


class Done(_Event):
    """result.json and the adapter are complete."""

    type: Literal["done"] = "done"


class Failed(_Event):
    """It cannot succeed, and starting it again would not help."""

    type: Literal["failed"] = "failed"
    code: str
    message: str


Event = Annotated[
    Started | Progress | Message | Checkpoint | Evaluating | Done | Failed, Field(discriminator="type")
]
_EVENT: TypeAdapter[Event] = TypeAdapter(Event)


class HeldOutScore(BaseModel):
    """How well a model answers the examples it was not trained on."""

    model_config = ConfigDict(frozen=True)

    loss: float = Field(description="Mean negative log-likelihood of a completion token, natural log.")
    exact_match: float = Field(description="Part of the examples answered word for word, greedily; 0 to 1.")


class TrainingResult(BaseModel):
    """result.json: all that registering the version needs from the training process."""

    model_config = ConfigDict(frozen=True)

    steps: int
    trained_tokens: int
    final_loss: float
    held_out_examples: int
    base: HeldOutScore | None = Field(description="Of the base model; null without held-out examples.")
    tuned: HeldOutScore | None
    target_modules: list[str]
    references: list[ReferenceGeneration]
    libraries: dict[str, str]
    seconds: dict[str, float] = Field(description="Where the time went, by stage.")

    def write(self, job_folder: Path) -> None:
        write_whole(job_folder / RESULT_NAME, self.model_dump_json(indent=2))

    @classmethod
    def read(cls, job_folder: Path) -> TrainingResult | None:
        """The result in this folder; None while there is none."""
        try:
            return cls.model_validate_json((job_folder / RESULT_NAME).read_text())
        except FileNotFoundError:
            return None


class EventWriter:
    """Appends to a job's events; every event is one write, so a reader sees whole lines only."""

    def __init__(self, job_folder: Path) -> None:
        self._file = open(job_folder / EVENTS_NAME, "ab", buffering=0)  # noqa: SIM115 - open while it lives
        if self._file.tell():
            self._file.write(b"\n")  # ends a line torn by a kill; an empty line is nothing

    def write(self, event: Event) -> None:
        self._file.write(event.model_dump_json().encode() + b"\n")

    def close(self) -> None:
        self._file.close()


@dataclass(slots=True)
class EventReader:
    """Reads a job's events from `offset` on; owned by the trainer that relays them."""

    job_folder: Path
    #: Bytes read so far; everything before it was handed out.
    offset: int = 0

    def read_new(self) -> Iterator[Event]:
        """The complete events since the last call; the offset moves as each one is taken."""
        try:
            with open(self.job_folder / EVENTS_NAME, "rb") as file:
                file.seek(self.offset)
                for line in file:
                    if not line.endswith(b"\n"):
                        return
                    event = _parse(line)
                    if event is not None:
                        yield event
                    self.offset += len(line)
        except FileNotFoundError:
            return


def starts_without_progress(job_folder: Path) -> int:
    """How often in a row the job was started from the step it is at now."""
    starts = [event.from_step for event in EventReader(job_folder).read_new() if event.type == "started"]
    return next((i for i, step in enumerate(reversed(starts)) if step != starts[-1]), len(starts))


def log_tail(job_folder: Path, lines: int = 8) -> str:
    """The last lines of the process's log, for an error message."""
    try:
        with open(job_folder / "train.log", "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 8192))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join([line for line in text.splitlines() if line.strip()][-lines:])


def _parse(line: bytes) -> Event | None:
    try:
        return _EVENT.validate_json(line)
    except ValidationError:
        return None
