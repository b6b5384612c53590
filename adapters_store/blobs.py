"""Bytes on disk that are either whole or not there.

Everything is written beside its place, flushed to the disk, and renamed: after a crash at any moment a blob
or a folder is complete under its name, or there is only a leftover whose name begins with `.staging-`, which
a later write removes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

_STAGING = ".staging-"
_CHUNK_BYTES = 1 << 20
#: A leftover untouched for this long belongs to no write under way.
_LEFTOVER_SECONDS = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class StagedBlob:
    """Bytes that are on the disk but not yet under their name."""

    path: Path
    sha256: str
    size_bytes: int


class BlobStore(Protocol):
    """Content-addressed storage: a blob's name is the sha256 of its bytes."""

    def stage(self, chunks: Iterable[bytes]) -> StagedBlob:
        """Write a stream to the disk in constant memory; `commit` or `discard` comes next."""
        ...

    def commit(self, staged: StagedBlob) -> str:
        """Give a staged blob its name, in one step; that it exists already is success. Returns the sha256."""
        ...

    def discard(self, staged: StagedBlob) -> None:
        """Drop a staged blob; one that was committed stays."""
        ...

    def put_file(self, path: Path) -> str:
        """Store a copy of a file; returns its sha256."""
        ...

    def open(self, sha256: str) -> BinaryIO:
        """The blob for reading. Raises FileNotFoundError."""
        ...

    def path(self, sha256: str) -> Path:
        """Where the blob lies. Nobody writes to it."""
        ...

    def delete(self, sha256: str) -> None:
        """Remove the blob; that it is gone already is success."""
        ...


class LocalBlobStore:
    """Blobs in a local folder, `ab/abcdef...`; safe for many processes on one machine."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def stage(self, chunks: Iterable[bytes]) -> StagedBlob:
        self._root.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(self._root)
        path = self._root / f"{_STAGING}{uuid.uuid4().hex}"
        digest, size_bytes = hashlib.sha256(), 0
        try:
            with path.open("xb") as file:
                for chunk in chunks:
                    file.write(chunk)
                    digest.update(chunk)
                    size_bytes += len(chunk)
                _flush_to_disk(file)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return StagedBlob(path, digest.hexdigest(), size_bytes)

    def commit(self, staged: StagedBlob) -> str:
        place = self.path(staged.sha256)
        place.parent.mkdir(exist_ok=True)
        os.replace(staged.path, place)
        sync_folder(place.parent)
        sync_folder(self._root)
        return staged.sha256

    def discard(self, staged: StagedBlob) -> None:
        staged.path.unlink(missing_ok=True)

    def put_file(self, path: Path) -> str:
        with path.open("rb") as file:
            return self.commit(self.stage(_chunks(file)))

    def open(self, sha256: str) -> BinaryIO:
        return self.path(sha256).open("rb")

    def path(self, sha256: str) -> Path:
        if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
            raise ValueError(f"not a sha256: {sha256[:80]!r}")
        return self._root / sha256[:2] / sha256

    def delete(self, sha256: str) -> None:
        self.path(sha256).unlink(missing_ok=True)


def hash_file(path: Path) -> str:
    """The sha256 of a file, in constant memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def commit_folder(source: Path, destination: Path) -> None:
    """Copy a folder of plain files to `destination` in one step: whole, or not at all.

    Raises FileExistsError when `destination` is there already; nothing is changed then.
    """
    with staged_folder(destination.parent) as staging:
        for file in sorted(source.iterdir()):
            shutil.copyfile(file, staging / file.name)
        publish_folder(staging, destination)


@contextmanager
def staged_folder(parent: Path) -> Iterator[Path]:
    """A new folder below `parent` to fill and `publish_folder`; removed when that does not happen."""
    parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(parent)
    staging = parent / f"{_STAGING}{uuid.uuid4().hex}"
    staging.mkdir()
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def sync_files(folder: Path) -> None:
    """Flush a folder's files and the folder itself to the disk."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    sync_folder(folder)


def publish_folder(staging: Path, destination: Path) -> None:
    """Flush a staged folder to the disk and give it its name. Raises FileExistsError."""
    sync_files(staging)
    rename_folder(staging, destination)


def rename_folder(staging: Path, destination: Path) -> None:
    """Give a staged folder, flushed already, its name. Raises FileExistsError."""
    if destination.exists():  # rename(2) would quietly replace an empty folder
        raise FileExistsError(destination.name)
    try:
        os.rename(staging, destination)
    except OSError as error:
        if destination.exists():
            raise FileExistsError(destination.name) from error
        raise
    sync_folder(destination.parent)


def sync_folder(path: Path) -> None:
    """Flush a folder's list of names to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_leftovers(parent: Path) -> None:
    oldest = time.time() - _LEFTOVER_SECONDS
    for path in parent.glob(f"{_STAGING}*"):
        with suppress(FileNotFoundError):  # another process was faster
            if path.stat().st_mtime >= oldest:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


def _flush_to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK_BYTES):
        yield chunk
