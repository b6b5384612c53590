"""SFTTrainer with its slow parts replaced."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from trl import SFTConfig, SFTTrainer

from finetune.trainers import checkpoints
from finetune.trainers.base_model import LoadedBase
from finetune.trainers.chat import TokenizedChat
from finetune.trainers.completion import completion_logits, completion_loss, divergence, pad_batch


class LossNotFinite(ArithmeticError):
    """The loss became NaN or infinite."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one optimiser step sees."""

    #: Chats to learn.
    chats: list[TokenizedChat]
    #: General chats on which the adapter is held near the base, by their number.
    anchors: dict[int, TokenizedChat]


# TRL has no types, so its class is `Any` to mypy.
class CompletionTrainer(SFTTrainer):  # type: ignore[misc]
    """Trains step by step as planned, with loss on completion tokens only, and checkpoints without pickles.

    The model's own layers are called apart (`completion_logits`); a model that cannot be called so was
    refused before (`check_model`), there is no other path.
    """

    def __init__(
        self, model: Any, config: SFTConfig, base: LoadedBase, steps: Sequence[Step], retention: float
    ) -> None:
        self._steps, self._pad_token, self._retention = steps, base.pad_token, retention
        #: The base's opinion of each anchor's tokens, once asked: log-probabilities (tokens, vocabulary).
        self._opinions: dict[int, Any] = {}
        #: Of the last step.
        self.last_loss = math.nan
        self.last_drift = 0.0
        self.last_tokens = 0
        #: What goes into the next checkpoint; the reporter keeps it up to date.
        self.note: checkpoints.CheckpointNote | None = None
        super().__init__(
            model,
            config,
            data_collator=self._collate,
            train_dataset=Dataset.from_list(
                [{"input_ids": chat.tokens, "labels": chat.labels} for chat in steps[0].chats]
            ),
            processing_class=base.tokenizer,
        )

    def get_train_dataloader(self) -> Any:
        """One item is one step: the order is the plan's, and a resumed run skips what was done."""
        loader = DataLoader(self._steps, batch_size=1, shuffle=False, collate_fn=self._collate)
        return self.accelerator.prepare(loader)

    def _collate(self, steps: list[Step]) -> dict[str, Any]:
        (step,) = steps
        batch = pad_batch([*step.chats, *step.anchors.values()], self._pad_token)
        return {**batch, "anchors": torch.tensor(list(step.anchors))}

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Loss of the chats plus `retention` times the distance from the base on the anchors."""
        anchors: list[int] = inputs["anchors"].tolist()
        logits, targets, rows = completion_logits(self.model.get_base_model(), inputs)
        learnt = rows < len(inputs["labels"]) - len(anchors)
        loss = completion_loss(logits[learnt], targets[learnt])
        self.last_loss, self.last_tokens = loss.item(), int(inputs["attention_mask"].sum())
        if not math.isfinite(self.last_loss):
            raise LossNotFinite(
                f"the loss became {self.last_loss} in step {self.state.global_step + 1}; "
                "a lower learning_rate_multiplier usually helps"
            )
        if anchors:
            drift = divergence(logits[~learnt], self._ask_base(anchors, inputs))
            self.last_drift = drift.item()
            loss = loss + self._retention * drift
        return loss

    def _ask_base(self, anchors: list[int], inputs: dict[str, Any]) -> Any:
        """The base's log-probabilities of the anchors' tokens; each anchor is asked once.

        Alone, not in the batch: rounding depends on the padding, and a resumed run must see the same.
        """
        for anchor, row in zip(anchors, range(-len(anchors), 0), strict=True):
            if anchor not in self._opinions:
                length = int(inputs["attention_mask"][row].sum())
                names = ("input_ids", "attention_mask", "labels")
                alone = {name: inputs[name][row : row + 1 or None, :length] for name in names}
                with torch.no_grad(), self.model.disable_adapter():
                    logits, _, _ = completion_logits(self.model.get_base_model(), alone)
                self._opinions[anchor] = torch.log_softmax(logits.float(), dim=-1)
        return torch.cat([self._opinions[anchor] for anchor in anchors])

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Nothing: steps are reported as events."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None: the version's manifest says where it comes from."""

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        self.model.save_pretrained(output_dir, state_dict=state_dict)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        assert self.note is not None
        self.note.write(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}")

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        checkpoints.save_optimizer(Path(output_dir), self.optimizer, self.lr_scheduler)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            checkpoints.load_optimizer(Path(checkpoint), self.optimizer, self.lr_scheduler)

    def _save_rng_state(self, output_dir: str) -> None:
        checkpoints.save_random_state(Path(output_dir))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            checkpoints.load_random_state(Path(checkpoint))

    def load_adapter(self, checkpoint: Path) -> None:
        """Take the weights of a checkpoint."""
        self._load_from_checkpoint(str(checkpoint))
