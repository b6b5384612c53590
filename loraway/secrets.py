"""Keys between our own processes: made once on this machine, readable by its owner only."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Literal

from loraway.settings import Settings

SecretName = Literal["engine", "internal"]


def read_or_create_secret(settings: Settings, name: SecretName) -> str:
    """The key of this name from `<data_dir>/secrets/<name>.key`, made (mode 0600) when there is none.

    Processes that ask at once get the same key: the first to link its file in place wins. The setting
    `engine.api_key` takes the place of the engine's file.
    """
    if name == "engine" and settings.engine.api_key is not None:
        return settings.engine.api_key.get_secret_value()
    path = settings.data_dir.resolve() / "secrets" / f"{name}.key"
    if not path.exists():
        _create(path)
    return path.read_text().strip()


def _create(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)  # unlike a rename this never replaces a key that another process uses
        except FileExistsError:
            return
    finally:
        draft.unlink()
