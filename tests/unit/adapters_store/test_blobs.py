"""Blobs and folders are whole or not there."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters_store.blobs import LocalBlobStore, commit_folder, staged_folder


def test_a_blob_is_found_by_the_hash_of_its_bytes(tmp_path: Path) -> None:
    store = LocalBlobStore(tmp_path / "blobs")
    staged = store.stage([b"ab", b"", b"c"])
    assert staged.size_bytes == 3

    sha256 = store.commit(staged)

    assert sha256 == hashlib.sha256(b"abc").hexdigest()
    with store.open(sha256) as file:
        assert file.read() == b"abc"
    source = tmp_path / "source"
    source.write_bytes(b"abc")
    assert store.put_file(source) == sha256
    store.delete(sha256)
    store.delete(sha256)
    with pytest.raises(FileNotFoundError):
        store.open(sha256)


def test_a_stream_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[bytes]:
        yield b"abc"
        raise ConnectionResetError

    store = LocalBlobStore(tmp_path / "blobs")
    with pytest.raises(ConnectionResetError):
        store.stage(broken())
    assert list((tmp_path / "blobs").iterdir()) == []


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "A" * 64, "a" * 63, "a" * 65])
def test_nothing_but_a_hash_becomes_a_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="not a sha256"):
        LocalBlobStore(tmp_path).path(name)


def test_a_folder_appears_whole_and_is_never_overwritten(tmp_path: Path) -> None:
    source, destination = tmp_path / "source", tmp_path / "store" / "version"
    source.mkdir()
    (source / "a.json").write_text("1")

    commit_folder(source, destination)
    (source / "a.json").write_text("2")
    with pytest.raises(FileExistsError):
        commit_folder(source, destination)

    assert (destination / "a.json").read_text() == "1"
    assert [path.name for path in destination.parent.iterdir()] == ["version"]


def test_a_folder_that_cannot_be_copied_leaves_nothing(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "inner").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        commit_folder(source, tmp_path / "store" / "version")
    assert list((tmp_path / "store").iterdir()) == []


def test_a_staged_folder_is_removed_when_it_was_not_used(tmp_path: Path) -> None:
    with staged_folder(tmp_path) as staging:
        assert staging.is_dir()
    assert not staging.exists()


def test_what_a_crash_left_is_removed_by_a_later_write_but_one_under_way_is_not(
    tmp_path: Path,
) -> None:
    old_folder, old_file, young = (tmp_path / f".staging-{name}" for name in ("a", "b", "c"))
    old_folder.mkdir()
    old_file.touch()
    young.touch()
    for path in (old_folder, old_file):
        os.utime(path, (0, 0))

    LocalBlobStore(tmp_path).put_file(young)

    assert young.exists() and not old_folder.exists() and not old_file.exists()
