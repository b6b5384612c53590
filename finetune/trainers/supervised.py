"""Supervised LoRA: TRL's SFTTrainer with its slow parts replaced."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback, set_seed
from trl import SFTConfig

from finetune.evaluation import Evaluation, evaluate
from finetune.trainers import checkpoints
from finetune.trainers.anchors import plan_anchors
from finetune.trainers.base_model import LoadedBase, anchor_chats, read_chats
from finetune.trainers.batches import plan_batches
from finetune.trainers.chat import TokenizedChat
from finetune.trainers.completion import check_model
from finetune.trainers.completion_trainer import CompletionTrainer, Step
from finetune.trainers.protocol import (
    Checkpoint,
    Evaluating,
    EventWriter,
    Message,
    Progress,
    Started,
    TrainingResult,
)
from finetune.trainers.spec import TrainingSpec

#: Divergence from the base on general questions, a token, at which they are still answered as before.
_SETTLED_DRIFT = 0.1
#: General questions in a step, at most: as many as there are examples in a small set's batch.
_ANCHORS_A_STEP = 5


class StopRequest(Protocol):
    """Says whether training should end after the step it is in."""

    @property
    def is_made(self) -> bool: ...


class Interrupted(Exception):
    """Training was asked to stop; its last checkpoint, at `step`, is where it goes on."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped at step {step}")
        self.step = step


def train_supervised(
    spec: TrainingSpec, job_folder: Path, base: LoadedBase, events: EventWriter, stop: StopRequest
) -> None:
    """Train, compare with the base, and leave adapter and result.json in the job's folder.

    Raises `Interrupted` when `stop` is made before the last step.
    """
    stopwatch = _Stopwatch()
    train, held_out = read_chats(spec, base, events)
    stopwatch.lap("reading")
    run = _Run(spec, job_folder, base, train, events, stop)
    stopwatch.lap("preparing")
    run.train()
    stopwatch.lap("training")
    run.save_adapter()
    stopwatch.lap("saving")
    evaluation = evaluate(run.model, base, train, held_out, spec.serving_dtype)
    stopwatch.lap("evaluating")
    run.write_result(evaluation, len(held_out), stopwatch.seconds)


class _Run:
    """One run of training; owns the model with its adapter."""

    def __init__(
        self,
        spec: TrainingSpec,
        job_folder: Path,
        base: LoadedBase,
        train: Sequence[TokenizedChat],
        events: EventWriter,
        stop: StopRequest,
    ) -> None:
        self._spec, self._folder, self._events = spec, job_folder, events
        chosen = spec.hyperparameters
        set_seed(spec.seed)  # the adapter's first weights are drawn
        check_model(base.model)
        self.model = get_peft_model(
            base.model,
            LoraConfig(
                r=chosen.lora_rank,
                lora_alpha=chosen.lora_alpha,
                lora_dropout=chosen.lora_dropout,
                target_modules="all-linear",
                task_type="CAUSAL_LM",
            ),
        )
        steps = _plan_steps(spec, base, train)
        self._trainer = CompletionTrainer(
            self.model, _config(spec, job_folder), base, steps, chosen.retention
        )
        self._reporter = _Reporter(self._trainer, spec, events, stop, len(steps))
        self._trainer.add_callback(self._reporter)

    def train(self) -> None:
        """Go through the plan, from the last checkpoint on if there is one."""
        checkpoint = checkpoints.last_checkpoint(self._folder / "checkpoints")
        note = checkpoints.CheckpointNote.read(checkpoint) if checkpoint else None
        if note:
            self._reporter.losses, self._reporter.tokens = list(note.losses), note.tokens
        self._reporter.report_start(note.step if note else 0)
        if checkpoint and note and note.is_last:
            self._trainer.load_adapter(checkpoint)
        else:
            self._trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if not self._reporter.is_finished:
            raise Interrupted(self._reporter.step)
        self._events.write(Evaluating(step=self._reporter.step, total_steps=self._reporter.total_steps))

    def save_adapter(self) -> None:
        """The adapter in PEFT's layout; base_model_name_or_path is left out, it is a path of this machine."""
        config = self.model.peft_config["default"]
        path, config.base_model_name_or_path = config.base_model_name_or_path, None
        self.model.save_pretrained(self._folder / "adapter")
        config.base_model_name_or_path = path
        (self._folder / "adapter" / "README.md").unlink(missing_ok=True)

    def write_result(self, evaluation: Evaluation, held_out: int, seconds: dict[str, float]) -> None:
        TrainingResult(
            steps=self._reporter.step,
            trained_tokens=self._reporter.tokens,
            final_loss=self._reporter.losses[-1],
            held_out_examples=held_out,
            base=evaluation.base,
            tuned=evaluation.tuned,
            target_modules=sorted({name.rpartition(".")[2] for name in self.model.targeted_module_names}),
            references=evaluation.references,
            libraries={name: version(name) for name in ("torch", "transformers", "trl", "peft")},
            seconds=seconds,
        ).write(self._folder)


class _Reporter(TrainerCallback):  # type: ignore[misc]  # transformers is not type-checked here
    """Turns what happens in the trainer into events, and says when enough is learnt."""

    def __init__(
        self,
        trainer: CompletionTrainer,
        spec: TrainingSpec,
        events: EventWriter,
        stop: StopRequest,
        total_steps: int,
    ) -> None:
        self._trainer, self._events, self._stop = trainer, events, stop
        self._stop_at_loss = spec.hyperparameters.stop_at_loss
        self._steps_an_epoch = total_steps // spec.hyperparameters.n_epochs
        self.total_steps = total_steps
        #: Of every step since the job's beginning, earlier processes included.
        self.losses: list[float] = []
        self.tokens = 0
        self._began = 0.0
        self._first_step = self._first_tokens = 0

    @property
    def step(self) -> int:
        return len(self.losses)

    @property
    def is_finished(self) -> bool:
        """The plan is done, or there is nothing more to learn.

        That is: every batch of the last epoch's worth of steps was below the threshold, and the adapter
        is near the base where it should be.
        """
        last = self.losses[-self._steps_an_epoch :]
        has_learnt = len(last) == self._steps_an_epoch and max(last) < self._stop_at_loss
        return (has_learnt and self._trainer.last_drift < _SETTLED_DRIFT) or self.step >= self.total_steps

    def report_start(self, from_step: int) -> None:
        self._events.write(Started(pid=os.getpid(), from_step=from_step, total_steps=self.total_steps))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._began, self._first_step, self._first_tokens = time.monotonic(), self.step, self.tokens

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.losses.append(self._trainer.last_loss)
        self.tokens += self._trainer.last_tokens
        self._report_progress(state.global_step)
        if self.is_finished and self.step < self.total_steps:
            self._events.write(
                Message(
                    text=f"Stopped early at step {self.step}/{self.total_steps}: the loss of the last "
                    f"{self._steps_an_epoch} steps is below {self._stop_at_loss:g}."
                )
            )
            control.should_training_stop = control.should_save = True
        if self._stop.is_made:
            control.should_training_stop = control.should_save = True
        self._trainer.note = checkpoints.CheckpointNote(
            step=self.step, losses=self.losses, tokens=self.tokens, is_last=self.is_finished
        )

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._events.write(Checkpoint(step=self.step, loss=self.losses[-1]))

    def _report_progress(self, step: int) -> None:
        seconds = time.monotonic() - self._began
        done = step - self._first_step
        self._events.write(
            Progress(
                step=step,
                total_steps=self.total_steps,
                loss=self.losses[-1],
                drift=self._trainer.last_drift,
                learning_rate=self._trainer.lr_scheduler.get_last_lr()[0],
                tokens=self.tokens,
                tokens_per_second=(self.tokens - self._first_tokens) / seconds,
                seconds_left=(self.total_steps - step) * seconds / done,
            )
        )


class _Stopwatch:
    """Seconds spent, by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[name], self._last = round(now - self._last, 3), now


def _plan_steps(spec: TrainingSpec, base: LoadedBase, train: Sequence[TokenizedChat]) -> list[Step]:
    """Every step of the run, drawn from the spec's seed alone."""
    chosen = spec.hyperparameters
    batches = plan_batches(
        [len(chat.tokens) for chat in train], chosen.batch_size, chosen.n_epochs, spec.seed
    )
    anchors = anchor_chats(base) if chosen.retention else []
    anchors_a_step = min(_ANCHORS_A_STEP, chosen.batch_size + 1) if anchors else 0
    asked = plan_anchors(len(batches), anchors_a_step, anchors, spec.seed)
    asked[0] = []  # a new adapter is the base model: nothing to hold it by yet
    return [
        Step([train[i] for i in batch], {i: anchors[i] for i in anchor_ids})
        for batch, anchor_ids in zip(batches, asked, strict=True)
    ]


def _config(spec: TrainingSpec, job_folder: Path) -> SFTConfig:
    chosen = spec.hyperparameters
    return SFTConfig(
        output_dir=str(job_folder / "checkpoints"),
        num_train_epochs=1,  # the plan holds all epochs
        per_device_train_batch_size=1,  # one item is one step
        learning_rate=chosen.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=chosen.warmup_ratio,
        weight_decay=chosen.weight_decay,
        seed=spec.seed,
        save_strategy="steps",
        save_steps=spec.checkpoint_steps,
        save_total_limit=2,
        gradient_checkpointing=False,
        use_cpu=spec.device == "cpu",
        bf16=False,
        fp16=False,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        logging_strategy="no",
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
    )
