"""docs/settings.md says what the settings are, and a secret setting never shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraway.cli.settings_reference import settings_reference
from loraway.settings import Settings

PAGE = Path(__file__).parents[3] / "docs" / "settings.md"


def test_the_page_is_what_the_settings_say() -> None:
    assert PAGE.read_text() == settings_reference(), "run: loraway config --reference > docs/settings.md"


def test_every_setting_has_a_description() -> None:
    rows = [line for line in settings_reference().splitlines() if line.startswith("| `")]
    assert rows
    assert all(not row.endswith("None |") for row in rows)


def test_secrets_are_hidden_in_the_effective_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAWAY_ENGINE__API_KEY", "very-secret")
    monkeypatch.setenv("LORAWAY_DATABASE__URL", "postgresql+psycopg://loraway:very-secret@127.0.0.1/loraway")
    settings = Settings()
    assert "very-secret" not in settings.model_dump_json()
    assert "very-secret" in settings.database_url
