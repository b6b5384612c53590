"""Which examples go into which step: fixed before training begins, so that a resumed run sees the same."""

from __future__ import annotations

import random
from collections.abc import Sequence

#: Batches whose examples are sorted by length together; within them lengths are near, order stays random.
_POOL_BATCHES = 50


def plan_batches(lengths: Sequence[int], batch_size: int, epochs: int, seed: int) -> list[list[int]]:
    """Every step's example indices, for all epochs.

    Each epoch uses each example once. Examples of like length share a batch, since padding costs as much
    as text: on chats of mixed lengths that halves a step's time. Pure: the same arguments, the same plan.
    """
    plan: list[list[int]] = []
    for epoch in range(epochs):
        draw = random.Random(f"{seed}/{epoch}")
        order = list(range(len(lengths)))
        draw.shuffle(order)
        batches: list[list[int]] = []
        pool_size = batch_size * _POOL_BATCHES
        for start in range(0, len(order), pool_size):
            pool = sorted(order[start : start + pool_size], key=lambda index: lengths[index], reverse=True)
            batches += [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
        draw.shuffle(batches)
        plan += batches
    return plan
