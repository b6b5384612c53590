"""LoRA by runs gives each row what its own adapter adds to it, and rows of the base model nothing."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.launch.vllm_cpu_lora import AdapterRun, adapter_runs, add_lora_to_linear, add_lora_to_logits

SLOTS, RANK, WIDTH = 4, 3, 5


def test_runs_are_neighbours_with_the_same_adapter() -> None:
    assert adapter_runs([]) == ()
    assert adapter_runs([-1, -1]) == ()
    assert adapter_runs([2]) == (AdapterRun(2, 0, 1),)
    assert adapter_runs([0, 0, -1, 3, 0]) == (AdapterRun(0, 0, 2), AdapterRun(3, 3, 4), AdapterRun(0, 4, 5))


@given(st.lists(st.integers(-1, SLOTS - 1), max_size=40))
def test_runs_cover_exactly_the_rows_with_an_adapter(slots: list[int]) -> None:
    covered = {row: run.slot for run in adapter_runs(slots) for row in range(run.start, run.end)}

    assert covered == {row: slot for row, slot in enumerate(slots) if slot >= 0}


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(-1, SLOTS - 1), min_size=1, max_size=12), st.sampled_from([1.0, 0.5]))
def test_each_row_gets_its_own_adapter_and_base_rows_stay_as_they_are(slots: list[int], scale: float) -> None:
    generator = torch.Generator().manual_seed(len(slots))
    slices = (4, 2)
    lora_a = [torch.randn(SLOTS, 1, RANK, WIDTH, generator=generator) for _ in slices]
    lora_b = [torch.randn(SLOTS, 1, width, RANK, generator=generator) for width in slices]
    inputs = torch.randn(len(slots), WIDTH, generator=generator)
    output = torch.randn(len(slots), sum(slices), generator=generator)
    expected = output.clone()
    for row, slot in enumerate(slots):
        if slot >= 0:
            deltas = [b[slot, 0] @ (a[slot, 0] @ inputs[row]) for a, b in zip(lora_a, lora_b, strict=True)]
            expected[row] += scale * torch.cat(deltas)

    add_lora_to_linear(output, inputs, lora_a, lora_b, scale, slices, adapter_runs(slots))

    torch.testing.assert_close(output, expected)


def test_base_rows_are_untouched_when_the_last_slot_is_filled() -> None:
    """Stock vLLM gives them the weights of the last slot, since they have index -1."""
    lora_a = [torch.ones(SLOTS, 1, RANK, WIDTH)]
    lora_b = [torch.ones(SLOTS, 1, 4, RANK)]
    output = torch.zeros(3, 4)

    add_lora_to_linear(
        output, torch.ones(3, WIDTH), lora_a, lora_b, 1.0, (4,), adapter_runs([-1, SLOTS - 1, -1])
    )

    assert output[0].eq(0).all()
    assert output[1].eq(RANK * WIDTH).all()
    assert output[2].eq(0).all()


def test_a_layer_with_another_number_of_dimensions_is_written_in_place() -> None:
    output = torch.zeros(1, 2, 4)

    add_lora_to_linear(
        output,
        torch.ones(1, 2, WIDTH),
        [torch.ones(SLOTS, 1, RANK, WIDTH)],
        [torch.ones(SLOTS, 1, 4, RANK)],
        1.0,
        (4,),
        adapter_runs([1, -1]),
    )

    assert output[0, 0].eq(RANK * WIDTH).all()
    assert output[0, 1].eq(0).all()


def test_logits_change_only_for_adapters_with_an_lm_head_part() -> None:
    lora_a = torch.zeros(SLOTS, 1, RANK, WIDTH)
    lora_b = torch.ones(SLOTS, 1, 6, RANK)
    lora_a[1] = 1.0
    logits = torch.zeros(3, 6)

    add_lora_to_logits(logits, torch.ones(3, WIDTH), lora_a, lora_b, 2.0, adapter_runs([-1, 1, 0]))

    assert logits[0].eq(0).all()
    assert logits[1].eq(2.0 * RANK * WIDTH).all()
    assert logits[2].eq(0).all()
