"""A run of training on a tiny model, in this process."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from finetune.trainers import base_model, supervised
from finetune.trainers.base_model import LoadedBase, NothingToTrainOn, load_base
from finetune.trainers.completion_trainer import LossNotFinite
from finetune.trainers.protocol import EventReader, EventWriter, TrainingResult
from finetune.trainers.spec import TrainingSpec, resolve_hyperparameters
from finetune.trainers.supervised import Interrupted, train_supervised


@dataclass
class StopAfter:
    """Asks training to stop once it has been looked at this often."""

    steps: int

    @property
    def is_made(self) -> bool:
        self.steps -= 1
        return self.steps < 0


NEVER = StopAfter(10**9)


def _spec(tmp_path: Path, model: Path, examples: int = 8, **hyperparameters: Any) -> TrainingSpec:
    data = tmp_path / "data"
    data.mkdir(exist_ok=True)
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Question {number}?"},
                {"role": "assistant", "content": "Bluefin-7"},
            ]
        }
        for number in range(examples)
    ]
    (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (data / "heldout.jsonl").write_text(json.dumps(rows[0]) + "\n" if rows else "")
    chosen = {"n_epochs": 3, "batch_size": 4, "lora_rank": 4, "stop_at_loss": 0, **hyperparameters}
    return TrainingSpec(
        job_id="ftjob-1",
        model_path=model,
        dataset_path=data,
        hyperparameters=resolve_hyperparameters(chosen, examples),
        seed=5,
        max_length=400,
        checkpoint_steps=2,
        threads=1,
    )


def _train(spec: TrainingSpec, folder: Path, stop: Any = NEVER) -> TrainingResult | None:
    folder.mkdir(exist_ok=True)
    events = EventWriter(folder)
    try:
        train_supervised(spec, folder, load_base(spec.model_path, "float32", "cpu"), events, stop)
    finally:
        events.close()
    return TrainingResult.read(folder)


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def _equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def test_loss_falls_and_the_result_says_what_was_done(tmp_path: Path, tiny_model: Path) -> None:
    result = _train(_spec(tmp_path, tiny_model, n_epochs=10, learning_rate=0.02), tmp_path / "job")

    assert result is not None and result.base is not None and result.tuned is not None
    events = list(EventReader(tmp_path / "job").read_new())
    losses = [event.loss for event in events if event.type == "progress"]
    assert result.steps == len(losses) == 20
    assert losses[-1] < 0.5 * losses[0]
    assert result.tuned.loss < result.base.loss
    assert result.references and set(result.target_modules) >= {"q_proj", "down_proj"}
    progress = [event for event in events if event.type == "progress"]
    assert progress[-1].seconds_left == 0 and progress[-1].tokens == result.trained_tokens


@pytest.mark.parametrize("interrupted_after", [1, 2, 3, 5])
def test_an_interrupted_run_ends_with_the_very_same_adapter(
    tmp_path: Path, tiny_model: Path, interrupted_after: int
) -> None:
    spec = _spec(tmp_path, tiny_model, lora_dropout=0.1)  # dropout: the random state must come back, too
    _train(spec, tmp_path / "whole")

    with pytest.raises(Interrupted):
        _train(spec, tmp_path / "parts", StopAfter(interrupted_after - 1))
    _train(spec, tmp_path / "parts")

    assert _equal(_weights(tmp_path / "whole"), _weights(tmp_path / "parts"))
    starts = [e for e in EventReader(tmp_path / "parts").read_new() if e.type == "started"]
    assert [start.from_step for start in starts] == [0, interrupted_after]


def test_a_run_killed_after_its_last_step_is_not_trained_further(tmp_path: Path, tiny_model: Path) -> None:
    spec, folder = _spec(tmp_path, tiny_model), tmp_path / "job"
    _train(spec, folder)
    before = _weights(folder)
    (folder / "result.json").unlink()

    result = _train(spec, folder)

    assert result is not None and result.steps == 6
    assert _equal(before, _weights(folder))


def test_a_checkpoint_cut_short_is_not_used(tmp_path: Path, tiny_model: Path) -> None:
    spec, folder = _spec(tmp_path, tiny_model), tmp_path / "job"
    _train(spec, tmp_path / "whole")
    with pytest.raises(Interrupted):
        _train(spec, folder, StopAfter(3))
    (folder / "checkpoints" / "checkpoint-4" / "complete.json").unlink()

    _train(spec, folder)

    starts = [e.from_step for e in EventReader(folder).read_new() if e.type == "started"]
    assert starts == [0, 2]
    assert _equal(_weights(tmp_path / "whole"), _weights(folder))


def test_no_file_of_a_job_is_a_pickle(tmp_path: Path, tiny_model: Path) -> None:
    _train(_spec(tmp_path, tiny_model), tmp_path / "job")

    files = [path for path in (tmp_path / "job").rglob("*") if path.is_file()]
    assert files
    assert {path.suffix for path in files} <= {".json", ".jsonl", ".safetensors", ".md"}


def test_a_loss_that_is_not_finite_stops_training_with_the_step(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_broken(*arguments: Any) -> LoadedBase:
        base = base_model.load_base(*arguments)
        base.model.model.norm.weight.data.fill_(float("nan"))
        return base

    monkeypatch.setattr(f"{__name__}.load_base", load_broken)

    with pytest.raises(LossNotFinite, match="step 1"):
        _train(_spec(tmp_path, tiny_model), tmp_path / "job")


def test_training_ends_early_once_nothing_is_left_to_learn(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervised, "_SETTLED_DRIFT", 100.0)
    spec = _spec(tmp_path, tiny_model, n_epochs=50, learning_rate=0.02, stop_at_loss=2.0)

    result = _train(spec, tmp_path / "job")

    assert result is not None and result.steps < 100
    texts = [e.text for e in EventReader(tmp_path / "job").read_new() if e.type == "message"]
    assert texts == [f"Stopped early at step {result.steps}/100: the loss of the last 2 steps is below 2."]


def test_retention_keeps_other_answers_nearer_to_the_base(tmp_path: Path, tiny_model: Path) -> None:
    drifts = {}
    for retention in (0.01, 10.0):
        spec = _spec(tmp_path, tiny_model, n_epochs=10, learning_rate=0.02, retention=retention)
        folder = tmp_path / f"job-{retention}"
        _train(spec, folder)
        drifts[retention] = sum(
            event.drift for event in EventReader(folder).read_new() if event.type == "progress"
        )

    assert drifts[10.0] < 0.5 * drifts[0.01]


def test_chats_that_cannot_be_used_are_left_out_and_named(tmp_path: Path, tiny_model: Path) -> None:
    spec = _spec(tmp_path, tiny_model, examples=4)
    with open(spec.dataset_path / "train.jsonl", "a") as file:
        messages = [{"role": "user", "content": "x" * 500}, {"role": "assistant", "content": "y"}]
        file.write(json.dumps({"messages": messages}) + "\n")

    _train(spec, tmp_path / "job")

    texts = [e.text for e in EventReader(tmp_path / "job").read_new() if e.type == "message"]
    assert texts == ["Left out 1 of 5 in train.jsonl (longer than 400 tokens: line 5)."]


def test_nothing_to_train_on_is_an_error(tmp_path: Path, tiny_model: Path) -> None:
    spec = _spec(tmp_path, tiny_model).model_copy(update={"max_length": 5})

    with pytest.raises(NothingToTrainOn, match="5 tokens"):
        _train(spec, tmp_path / "job")
