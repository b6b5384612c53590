"""Batches, anchors and hyperparameters are fixed before training begins."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from finetune.trainers.anchors import plan_anchors
from finetune.trainers.batches import plan_batches
from finetune.trainers.spec import BASE_LEARNING_RATE, ENOUGH_STEPS, resolve_hyperparameters

_lengths = st.lists(st.integers(1, 500), min_size=1, max_size=120)


@given(_lengths, st.integers(1, 9), st.integers(1, 4), st.integers(0, 2**31 - 1))
def test_every_epoch_uses_each_example_once(lengths: list[int], size: int, epochs: int, seed: int) -> None:
    plan = plan_batches(lengths, size, epochs, seed)

    steps = len(plan) // epochs
    assert len(plan) == steps * epochs
    for epoch in range(epochs):
        batches = plan[epoch * steps : (epoch + 1) * steps]
        assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
        assert all(1 <= len(batch) <= size for batch in batches)


@given(_lengths, st.integers(1, 9), st.integers(0, 1000))
def test_the_same_seed_gives_the_same_plan(lengths: list[int], size: int, seed: int) -> None:
    assert plan_batches(lengths, size, 2, seed) == plan_batches(lengths, size, 2, seed)


def test_other_seeds_and_epochs_give_other_orders() -> None:
    lengths = list(range(1, 41))

    first, second = plan_batches(lengths, 4, 1, seed=1), plan_batches(lengths, 4, 1, seed=2)
    both = plan_batches(lengths, 4, 2, seed=1)

    assert first != second
    assert both[:10] == first and both[10:] != first


def test_batches_hold_examples_of_like_length() -> None:
    lengths = [10, 200] * 20

    plan = plan_batches(lengths, 4, 1, seed=3)

    assert all(len({lengths[index] for index in batch}) == 1 for batch in plan)


@given(st.integers(1, 60), st.integers(1, 6), st.integers(6, 30), st.integers(0, 100))
def test_no_anchor_comes_up_twice_before_all_have(steps: int, per_step: int, count: int, seed: int) -> None:
    plan = plan_anchors(steps, per_step, range(count), seed)

    asked = Counter(anchor for step in plan for anchor in step)
    assert all(len(step) == per_step for step in plan)
    assert max(asked.values()) - min(asked.get(i, 0) for i in range(count)) <= 2


@given(st.integers(1, 5000))
def test_defaults_give_small_sets_enough_steps_and_large_ones_three_epochs(examples: int) -> None:
    chosen = resolve_hyperparameters({"n_epochs": "auto", "batch_size": None}, examples)

    steps = chosen.n_epochs * -(-examples // chosen.batch_size)
    assert steps >= ENOUGH_STEPS
    assert chosen.batch_size <= 8
    assert chosen.n_epochs == 3 or steps < ENOUGH_STEPS + -(-examples // chosen.batch_size)


def test_what_was_asked_for_is_kept_and_the_rest_follows_from_it() -> None:
    chosen = resolve_hyperparameters(
        {"n_epochs": 5, "learning_rate_multiplier": 0.5, "lora_rank": 4, "lora_alpha": "auto"}, 100
    )

    assert (chosen.n_epochs, chosen.lora_rank, chosen.lora_alpha) == (5, 4, 8)
    assert chosen.learning_rate == BASE_LEARNING_RATE * 0.5
