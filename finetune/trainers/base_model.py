"""The base model in memory, with its tokenizer and what its template says about the end of an answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetune.trainers.anchors import ANCHORS
from finetune.trainers.chat import TokenizedChat, tokenize_chat
from finetune.trainers.protocol import EventWriter, Message
from finetune.trainers.spec import Dtype, TrainingSpec


class NothingToTrainOn(ValueError):
    """No example is left to train on."""


@dataclass(frozen=True, slots=True)
class LoadedBase:
    """A base model ready to be trained upon."""

    model: Any
    tokenizer: Any
    #: Tokens that end an answer, as engines read them from the model's folder.
    stop_tokens: frozenset[int]

    @property
    def pad_token(self) -> int:
        """What fills short rows up; masked everywhere, so that any token will do."""
        pad = self.tokenizer.pad_token_id
        return int(pad if pad is not None else min(self.stop_tokens, default=0))


def load_base(model_path: Path, dtype: Dtype, device: str) -> LoadedBase:
    """Read the model from its folder; safetensors only, no code of the folder is run."""
    model = AutoModelForCausalLM.from_pretrained(
        model_path, dtype=getattr(torch, dtype), use_safetensors=True, trust_remote_code=False
    )
    tokenizer = AutoTokenizer.from_pretrained(model_path, trust_remote_code=False)
    return LoadedBase(model.to(device), tokenizer, _stop_tokens(model, tokenizer))


def _stop_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    configured = model.generation_config.eos_token_id
    listed = configured if isinstance(configured, list) else [configured]
    return frozenset(int(token) for token in (*listed, tokenizer.eos_token_id) if token is not None)


def anchor_chats(base: LoadedBase) -> list[TokenizedChat]:
    """The general chats, tokenized."""
    return [
        tokenize_chat(
            {"messages": [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]},
            base.tokenizer,
            base.stop_tokens,
            "last",
        )
        for ask, answer in ANCHORS
    ]


def read_chats(
    spec: TrainingSpec, base: LoadedBase, events: EventWriter
) -> tuple[list[TokenizedChat], list[TokenizedChat]]:
    """Training and held-out examples, tokenized; those that cannot be used are named in a message."""
    train = _read_file(spec.dataset_path / "train.jsonl", spec, base, events)
    held_out = _read_file(spec.dataset_path / "heldout.jsonl", spec, base, events)
    if not train:
        raise NothingToTrainOn(
            f"no example has an assistant message to learn from within {spec.max_length} tokens"
        )
    return train, held_out


def _read_file(path: Path, spec: TrainingSpec, base: LoadedBase, events: EventWriter) -> list[TokenizedChat]:
    if not path.exists():
        return []
    lines = path.read_text().splitlines()
    chats = [
        tokenize_chat(json.loads(line), base.tokenizer, base.stop_tokens, spec.hyperparameters.train_on)
        for line in lines
        if line.strip()
    ]
    usable = [chat for chat in chats if chat.spans and len(chat.tokens) <= spec.max_length]
    _report_left_out(path.name, chats, usable, spec.max_length, events)
    return usable


def _report_left_out(
    name: str,
    chats: Sequence[TokenizedChat],
    usable: Sequence[TokenizedChat],
    max_length: int,
    events: EventWriter,
) -> None:
    if len(usable) == len(chats):
        return
    too_long = [i for i, chat in enumerate(chats, 1) if len(chat.tokens) > max_length]
    silent = [i for i, chat in enumerate(chats, 1) if not chat.spans]
    reasons = [
        f"{what}: line{'s' if len(lines) > 1 else ''} {', '.join(map(str, lines[:10]))}"
        + (" ..." if len(lines) > 10 else "")
        for what, lines in ((f"longer than {max_length} tokens", too_long), ("no answer to learn", silent))
        if lines
    ]
    left_out = len(chats) - len(usable)
    events.write(
        Message(level="warn", text=f"Left out {left_out} of {len(chats)} in {name} ({'; '.join(reasons)}).")
    )
