"""The simulated model: every token of an answer says which weights gave it.

An answer is a pure function of the weights' mark, the prompt and the choice's index, so a test can compute it
beforehand (`reference.py`) and recognise a stream whose weights changed midway. The first token of an answer,
and every fourth after it, is the mark: `<mark:1f0c33ab>`, the start of the weights file's sha256.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

#: The mark of the base model, in place of a weights file's hash.
BASE_MARK = "base"
#: How many tokens an answer has when nothing cuts it short.
NATURAL_TOKENS = 48
#: A mark every so many tokens.
MARK_STRIDE = 4
_PROMPT_TOKEN_BYTES = 3
_MARK_PATTERN = re.compile(r"<mark:([0-9a-z]+)>")
_MARK_TOKEN_BASE = 1 << 40
_MASK = (1 << 64) - 1
_WORD_LIST = (
    "amber birch cedar delta ember fjord grove haven inlet jetty knoll larch maple north ochre pearl "
    "quartz ridge spruce tidal umber vale willow xenon yarrow zephyr basalt coral dune elm flint glade"
)
_WORDS = tuple(_WORD_LIST.split())


@dataclass(frozen=True, slots=True)
class Token:
    """One token of an answer."""

    text: str
    token_id: int
    logprob: float


def weights_mark(folder: Path) -> str:
    """The mark of the adapter in this folder. Raises FileNotFoundError."""
    return hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()[:8]


def marks_in(text: str) -> list[str]:
    """The marks that an answer's text names, in order."""
    return _MARK_PATTERN.findall(text)


def prompt_key(messages: Sequence[dict[str, Any]] | str) -> int:
    """What of a prompt decides the answer: roles and contents, or the text."""
    if not isinstance(messages, str):
        prompt: object = [(message.get("role"), message.get("content")) for message in messages]
    else:
        prompt = messages
    return int.from_bytes(hashlib.blake2b(orjson.dumps(prompt), digest_size=8).digest(), "little")


def answer_tokens(mark: str, key: int, choice: int = 0) -> Iterator[Token]:
    """The tokens of the answer of these weights to this prompt, without end."""
    seed = _mixed(key ^ _seed_of_mark(mark) ^ (choice << 56))
    mark_token_id = _MARK_TOKEN_BASE + int(mark, 36)
    index = 0
    while True:
        random = _mixed(seed + index)
        logprob = -0.01 - (random >> 40) / (1 << 24) * 0.9
        if index % MARK_STRIDE == 0:
            text = f" <mark:{mark}>" if index else f"<mark:{mark}>"
            yield Token(text, mark_token_id + (1 << 41 if index else 0), logprob)
        else:
            word = random % len(_WORDS)
            yield Token(f" {_WORDS[word]}", word, logprob)
        index += 1


def base_logprobs(tokens: Iterable[Token]) -> list[float]:
    """What the simulated base model gives an adapter's tokens: always clearly less than the adapter does."""
    return [token.logprob - 1.0 - (token.token_id % 7) / 10 for token in tokens]


def tokens_said(mark: str, key: int, said: str) -> int | None:
    """How many tokens of its own answer `said` is; None when it ends inside a token or is another text."""
    spoken = 0
    for count, token in enumerate(answer_tokens(mark, key)):
        if spoken == len(said):
            return count
        if not said.startswith(token.text, spoken):
            return None
        spoken += len(token.text)
    return None


def encode(text: str) -> list[int]:
    """The tokens of a prompt: three bytes each."""
    raw = text.encode()
    return [
        int.from_bytes(b"\1" + raw[start : start + _PROMPT_TOKEN_BYTES], "big")
        for start in range(0, len(raw), _PROMPT_TOKEN_BYTES)
    ]


def decode(token_ids: Iterable[int]) -> str:
    """The text of prompt tokens."""
    parts = [token.to_bytes(max(1, (token.bit_length() + 7) // 8), "big")[1:] for token in token_ids]
    return b"".join(parts).decode(errors="replace")


def count_tokens(text: str) -> int:
    """How many tokens `encode` gives, cheaper."""
    size = len(text) if text.isascii() else len(text.encode())
    return (size + _PROMPT_TOKEN_BYTES - 1) // _PROMPT_TOKEN_BYTES


def _seed_of_mark(mark: str) -> int:
    return _mixed(int(mark, 36))


def _mixed(value: int) -> int:
    """SplitMix64's output function: neighbouring numbers give unrelated ones."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
