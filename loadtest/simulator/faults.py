"""The faults a test can put into a simulated replica."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any


class FaultKind(StrEnum):
    """What goes wrong."""

    #: The listening socket is closed: connections are refused; those that are open go on.
    REFUSE = "refuse"
    #: A generation is taken and never answered.
    HANG_BEFORE_FIRST_BYTE = "hang_before_first_byte"
    #: A stream falls silent after `after_tokens` tokens.
    HANG_MID_STREAM = "hang_mid_stream"
    #: A stream's connection is reset inside the event after `after_tokens` tokens.
    RESET_MID_CHUNK = "reset_mid_chunk"
    #: A generation is answered with 500.
    ERROR_500 = "error_500"
    #: Everything takes `factor` times as long.
    SLOW_FACTOR = "slow_factor"
    #: Adapters cannot be loaded.
    FAIL_LOAD = "fail_load"
    #: Requests for an adapter are answered by the base model, in the adapter's name.
    WRONG_ADAPTER = "wrong_adapter"
    #: `adapter` is dropped silently.
    EVICT = "evict"
    #: The process is gone: connections reset, adapters forgotten, connections refused until `restart`.
    DIE = "die"
    #: It is back, without adapters.
    RESTART = "restart"
    #: All faults are taken back.
    CLEAR = "clear"


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault; `times` requests have it, all when null."""

    fault: FaultKind
    times: int | None = None
    after_tokens: int = 2
    factor: float = 1.0
    adapter: str | None = None

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Fault:
        """Raises ValueError naming what is not known."""
        unknown = body.keys() - {field.name for field in fields(cls)}
        if unknown or "fault" not in body:
            raise ValueError(f"a fault has {[f.name for f in fields(cls)]}; not {sorted(unknown)}")
        return cls(**{**body, "fault": FaultKind(body["fault"])})


class Faults:
    """The faults in force. The replica owns it; tests change it through the replica or over HTTP."""

    def __init__(self) -> None:
        self._left: dict[FaultKind, tuple[Fault, int | None]] = {}

    def add(self, fault: Fault) -> None:
        self._left[fault.fault] = (fault, fault.times)

    def clear(self) -> None:
        self._left.clear()

    def take(self, kind: FaultKind, adapter: str | None = None) -> Fault | None:
        """The fault of this kind, if this request has it; counts it."""
        fault, left = self._left.get(kind, (None, None))
        if fault is None or (fault.adapter is not None and fault.adapter != adapter):
            return None
        if left is not None:
            if left <= 1:
                del self._left[kind]
            else:
                self._left[kind] = (fault, left - 1)
        return fault

    @property
    def slow_factor(self) -> float:
        fault, _ = self._left.get(FaultKind.SLOW_FACTOR, (None, None))
        return 1.0 if fault is None else fault.factor
