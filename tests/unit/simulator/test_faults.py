"""Faults are counted, aimed and taken back."""

from __future__ import annotations

import pytest

from loadtest.simulator.faults import Fault, FaultKind, Faults


def test_a_fault_with_times_ends_by_itself() -> None:
    faults = Faults()
    faults.add(Fault(FaultKind.ERROR_500, times=2))

    taken = [faults.take(FaultKind.ERROR_500) is not None for _ in range(3)]

    assert taken == [True, True, False]


def test_a_fault_aimed_at_an_adapter_spares_the_others() -> None:
    faults = Faults()
    faults.add(Fault(FaultKind.FAIL_LOAD, times=1, adapter="a"))

    assert faults.take(FaultKind.FAIL_LOAD, "b") is None
    assert faults.take(FaultKind.FAIL_LOAD, "a") is not None


def test_clear_takes_every_fault_back() -> None:
    faults = Faults()
    faults.add(Fault(FaultKind.SLOW_FACTOR, factor=3))
    assert faults.slow_factor == 3

    faults.clear()

    assert faults.slow_factor == 1


@pytest.mark.parametrize("body", [{}, {"fault": "unheard_of"}, {"fault": "die", "when": "now"}])
def test_an_unknown_fault_is_refused(body: dict[str, str]) -> None:
    with pytest.raises(ValueError):
        Fault.from_json(body)
