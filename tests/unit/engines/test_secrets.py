"""Keys between our own processes."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from loraway.secrets import read_or_create_secret
from loraway.settings import Settings


def test_processes_that_ask_at_once_get_one_key(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    with ThreadPoolExecutor(8) as threads:
        keys = set(threads.map(lambda _: read_or_create_secret(settings, "internal"), range(32)))
    assert len(keys) == 1 and len(keys.pop()) >= 40
    (file,) = (tmp_path / "secrets").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_the_engine_key_of_the_settings_is_used(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, engine={"api_key": "given"})
    assert read_or_create_secret(settings, "engine") == "given"
    assert read_or_create_secret(settings, "internal") != "given"
