"""The simulated replica's adapters: limits, silent evictions, and what comes back from disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtest.simulator.adapters import AdapterTable, AdapterUnreadable, read_adapter
from tests.adapters import write_adapter


@pytest.fixture
def table(tmp_path: Path) -> AdapterTable:
    table = AdapterTable(limit=2)
    for seed, name in enumerate("abc"):
        table.add(read_adapter(name, str(write_adapter(tmp_path / name, seed=seed))))
    return table


def test_past_the_limit_the_least_recently_used_leaves_silently(table: AdapterTable) -> None:
    assert list(table.resident) == ["b", "c"]
    assert list(table.known) == ["a", "b", "c"]
    assert table.evictions == 1


def test_an_evicted_adapter_comes_back_from_its_files_when_used(table: AdapterTable) -> None:
    table.use("b")

    assert table.use("a").name == "a"
    assert list(table.resident) == ["b", "a"]


def test_an_evicted_adapter_whose_files_are_gone_cannot_be_used(table: AdapterTable, tmp_path: Path) -> None:
    (tmp_path / "a" / "adapter_model.safetensors").unlink()

    with pytest.raises(FileNotFoundError):
        table.use("a")


def test_a_forgotten_adapter_is_unknown(table: AdapterTable) -> None:
    table.forget("c")

    with pytest.raises(KeyError):
        table.use("c")


def test_rank_is_read_from_the_configuration(tmp_path: Path) -> None:
    assert read_adapter("r", str(write_adapter(tmp_path, seed=1, rank=64))).rank == 64


def test_weights_that_are_not_safetensors_are_unreadable(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path, seed=1)
    (folder / "adapter_model.safetensors").write_bytes(b"\xff" * 100)

    with pytest.raises(AdapterUnreadable, match="header too large"):
        read_adapter("x", str(folder))
