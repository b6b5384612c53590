"""What must be there before anything starts: the lock, the base model, a first key."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from gateway.keys import KeyStore, ensure_project
from loraway.cli.client import Connection, fail
from loraway.database import Database
from loraway.models import EMBEDDED_MODEL, is_prepared
from loraway.settings import Settings


@contextmanager
def only_one(settings: Settings) -> Iterator[None]:
    """Hold the data folder; ends the command when another `loraway up` has it."""
    with (settings.data_dir / "up.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fail(f"Another 'loraway up' is running on {settings.data_dir}; stop it, or set LORAWAY_DATA_DIR.")
        for leftover in (settings.data_dir / "run").glob("*.ready"):
            leftover.unlink()
        yield


def prepare_model(settings: Settings) -> None:
    """Make the embedded model's folder, once."""
    if is_prepared(settings.model_path):
        return
    if settings.engine.model_path is not None or settings.engine.base_model != EMBEDDED_MODEL:
        fail(f"{settings.model_path} holds no model: config.json, tokenizer.json and safetensors are needed.")
    # A process of its own, because it needs torch, which this one never imports.
    command = [sys.executable, "-m", "engines.launch.prepare_model", str(settings.model_path)]
    if subprocess.run(command, check=False).returncode != 0:
        fail("The embedded model could not be prepared; see above.")


def first_key(settings: Settings, stores_by_default: bool) -> Connection:
    """The key that `up` prints: made on the first start, kept for this user, the same ever after."""
    database = Database(settings.database_url)
    database.migrate()
    keys = KeyStore(database)
    file = settings.data_dir / "secrets" / "api.key"
    secret = file.read_text().strip() if file.exists() else ""
    if not keys.is_valid(secret):
        project_id = ensure_project(database, "default", stores_by_default=stores_by_default)
        secret, _ = keys.create(project_id, "made by loraway up")
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as stream:
            stream.write(secret)
    database.dispose()
    host = "127.0.0.1" if settings.gateway.host == "0.0.0.0" else settings.gateway.host
    return Connection(f"http://{host}:{settings.gateway.port}", secret)
