"""Which examples become a dataset, and which of them are held out: pure decisions over fingerprints.

Examples themselves stay on the disk; what decides is a few bytes for each, so a large set fits in memory.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import orjson


class LeftOut(StrEnum):
    """Why something is not in the dataset."""

    #: The same messages are in it already.
    DUPLICATE = "duplicate"
    #: The same question was answered by a correction, or by a newer one.
    SUPERSEDED = "superseded"
    #: Its feedback is bad and nobody has given the better answer.
    NEGATIVE_SCORE = "negative_score"
    #: Its feedback is below the `min_score` asked for.
    LOW_SCORE = "low_score"
    #: The answer was cut off at the token limit.
    TRUNCATED = "truncated"
    #: It is not a chat that ends with an answer.
    UNUSABLE = "unusable"


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What the selection knows of an example."""

    #: Digest of everything the model would see and learn.
    whole: bytes
    #: Digest of the example without its last message.
    question: bytes
    is_corrected: bool = False


@dataclass(frozen=True, slots=True)
class Selection:
    """Places, in the order they came, of the examples to keep; and why the others are left out."""

    kept: list[int]
    left_out: Counter[LeftOut] = field(default_factory=Counter)


def fingerprint(row: Mapping[str, Any], *, is_corrected: bool = False) -> Fingerprint:
    """The fingerprint of `{"messages": [...], "tools": [...]}`."""
    question = {**row, "messages": row["messages"][:-1]}
    return Fingerprint(_digest(row), _digest(question), is_corrected)


def choose(examples: Sequence[Fingerprint]) -> Selection:
    """Drop duplicates; where a question has corrected answers, keep the last of them and nothing else."""
    corrected = {e.question: place for place, e in enumerate(examples) if e.is_corrected}
    kept: list[int] = []
    left_out: Counter[LeftOut] = Counter()
    seen: set[bytes] = set()
    for place, example in enumerate(examples):
        if corrected.get(example.question, place) != place:
            best = examples[corrected[example.question]]
            left_out[LeftOut.DUPLICATE if best.whole == example.whole else LeftOut.SUPERSEDED] += 1
        elif example.whole in seen:
            left_out[LeftOut.DUPLICATE] += 1
        else:
            seen.add(example.whole)
            kept.append(place)
    return Selection(kept, left_out)


def hold_out(examples: Sequence[Fingerprint], fraction: float, minimum: int) -> frozenset[int]:
    """Places of the examples to keep for evaluation.

    About `fraction` of them, at least one, but never so many that fewer than `minimum` are left to train on.
    Which ones depends on their questions alone: much the same ones as the set grows, and a question is never
    on both sides.
    """
    room = len(examples) - minimum
    wanted = min(room, max(1, round(len(examples) * fraction))) if fraction > 0 else 0
    groups: defaultdict[bytes, list[int]] = defaultdict(list)
    for place, example in enumerate(examples):
        groups[example.question].append(place)
    held: list[int] = []
    for question in sorted(groups):
        if len(held) >= wanted:
            break
        if len(held) + len(groups[question]) <= wanted:
            held += groups[question]
    return frozenset(held)


def _digest(value: Any) -> bytes:
    return hashlib.blake2b(orjson.dumps(value, option=orjson.OPT_SORT_KEYS), digest_size=16).digest()
