"""A tiny model for the trainers' tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from finetune.trainers.base_model import LoadedBase, load_base
from tests.tiny_model import make_tiny_model


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """More only wait for one another on matrices this small."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def base(tiny_model: Path) -> LoadedBase:
    """A fresh copy in memory: training changes it."""
    return load_base(tiny_model, "float32", "cpu")
