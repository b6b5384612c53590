"""Which adapters a simulated replica holds, with the limits that real engines have."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from loadtest.simulator.answers import weights_mark


class AdapterUnreadable(Exception):
    """The weights file is not safetensors."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """One adapter, as read from its folder."""

    name: str
    path: str
    rank: int
    mark: str


def read_adapter(name: str, path: str) -> Adapter:
    """Read an adapter's folder. Raises FileNotFoundError and AdapterUnreadable."""
    folder = Path(path)
    config = json.loads((folder / "adapter_config.json").read_bytes())
    with (folder / "adapter_model.safetensors").open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
    if header_bytes > 100_000_000:
        raise AdapterUnreadable("Error while deserializing header: header too large")
    return Adapter(name, path, int(config["r"]), weights_mark(folder))


class AdapterTable:
    """The adapters of one replica: those that may be asked for, and those of them that are in memory.

    Past the limit the least recently used one leaves the memory silently, and comes back from its files when
    it is used again, as both engines do it. The replica owns the table and changes it.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.evictions = 0
        self.known: dict[str, Adapter] = {}
        self.resident: OrderedDict[str, Adapter] = OrderedDict()

    def add(self, adapter: Adapter) -> None:
        """Take an adapter into memory, in place of the least recently used one when there is no room."""
        self.known[adapter.name] = adapter
        self.resident[adapter.name] = adapter
        self.resident.move_to_end(adapter.name)
        while len(self.resident) > self.limit:
            self.resident.popitem(last=False)
            self.evictions += 1

    def use(self, name: str) -> Adapter:
        """The adapter for a request, read from its files when it is not in memory.

        Raises KeyError when it was never loaded, and what `read_adapter` raises.
        """
        known = self.known[name]
        if name in self.resident:
            self.resident.move_to_end(name)
            return self.resident[name]
        adapter = read_adapter(name, known.path)
        self.add(adapter)
        return adapter

    def drop(self, name: str) -> None:
        """Out of memory; it may still be asked for."""
        self.resident.pop(name, None)

    def forget(self, name: str) -> None:
        """Out of memory, and unknown from now on."""
        self.drop(name)
        self.known.pop(name, None)

    def clear(self) -> None:
        self.known.clear()
        self.resident.clear()
