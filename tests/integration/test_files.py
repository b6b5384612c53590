"""Uploaded files on both databases and a real disk."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import insert

from adapters_store.blobs import LocalBlobStore
from finetune.files import FileStatus, FileStore
from loraway.database import Database
from loraway.errors import InvalidRequest, InvalidTrainingFile, NotFound, PayloadTooLarge
from loraway.ids import ProjectId
from loraway.schema import projects

PROJECT, OTHER = ProjectId("proj_one"), ProjectId("proj_two")


def line(answer: str = "Bluefin-7") -> bytes:
    messages = [{"role": "user", "content": "Codename?"}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": messages}).encode() + b"\n"


@pytest.fixture
def blobs(tmp_path: Path) -> LocalBlobStore:
    return LocalBlobStore(tmp_path / "blobs")


@pytest.fixture
def files(database: Database, blobs: LocalBlobStore) -> FileStore:
    with database.write() as connection:
        for project_id in (PROJECT, OTHER):
            connection.execute(insert(projects).values(id=project_id, name=project_id, created_at=0.0))
    return FileStore(database, blobs, max_bytes=10_000)


def stored_blobs(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()]


def test_a_good_file_is_kept_as_it_came_and_can_be_read_again(files: FileStore) -> None:
    content = line("a") + b"\r\n" + line("b")
    created = files.create(PROJECT, "../up/train.jsonl", "fine-tune", [content[:7], content[7:]])

    assert created.filename == "train.jsonl" and created.bytes == len(content)
    assert created.status is FileStatus.PROCESSED and created.example_count == 2
    assert files.get(PROJECT, created.file_id) == created
    with files.content(PROJECT, created.file_id) as source:
        assert source.read() == content
    answers = [row["messages"][-1]["content"] for row in files.examples(PROJECT, created.file_id)]
    assert answers == ["a", "b"]


def test_a_file_with_bad_lines_is_refused_with_their_numbers_and_kept_as_error(files: FileStore) -> None:
    with pytest.raises(InvalidTrainingFile) as caught:
        files.create(PROJECT, "t.jsonl", "fine-tune", [line() + b"{\n" + line() + b"[]\n"])

    assert "line 2: not JSON" in caught.value.message and "line 4: must be" in caught.value.message
    (kept,) = files.list(PROJECT).items
    assert kept.status is FileStatus.ERROR and kept.file_id in caught.value.message
    assert kept.status_details is not None and "line 2: not JSON" in kept.status_details


def test_a_file_that_is_too_large_or_for_nothing_we_know_leaves_nothing(
    files: FileStore, tmp_path: Path
) -> None:
    with pytest.raises(PayloadTooLarge):
        files.create(PROJECT, "t.jsonl", "fine-tune", (line() for _ in range(1000)))
    with pytest.raises(InvalidRequest, match="supported: 'fine-tune'"):
        files.create(PROJECT, "t.jsonl", "assistants", [line()])
    assert files.list(PROJECT).items == [] and stored_blobs(tmp_path) == []


def test_an_upload_that_breaks_off_leaves_nothing(files: FileStore, tmp_path: Path) -> None:
    def broken() -> Iterator[bytes]:
        yield line()
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        files.create(PROJECT, "t.jsonl", "fine-tune", broken())
    assert files.list(PROJECT).items == [] and stored_blobs(tmp_path) == []


def test_each_project_sees_and_deletes_its_own_files_only(files: FileStore, tmp_path: Path) -> None:
    mine = files.create(PROJECT, "t.jsonl", "fine-tune", [line()])
    theirs = files.create(OTHER, "t.jsonl", "fine-tune", [line()])

    for call in (files.get, files.content, files.delete):
        with pytest.raises(NotFound):
            call(PROJECT, theirs.file_id)
    files.delete(PROJECT, mine.file_id)
    with pytest.raises(NotFound):
        files.get(PROJECT, mine.file_id)
    with pytest.raises(NotFound):
        files.delete(PROJECT, mine.file_id)
    with files.content(OTHER, theirs.file_id) as source:
        assert source.read() == line()  # the same bytes, still needed
    files.delete(OTHER, theirs.file_id)
    assert stored_blobs(tmp_path) == []


def test_files_are_listed_page_by_page_in_either_order(files: FileStore) -> None:
    ids = [files.create(PROJECT, f"{i}.jsonl", "fine-tune", [line()]).file_id for i in range(5)]

    first = files.list(PROJECT, limit=2)
    second = files.list(PROJECT, after=first.items[-1].file_id, limit=2)
    last = files.list(PROJECT, after=second.items[-1].file_id, limit=2)
    assert [file.file_id for page in (first, second, last) for file in page.items] == ids[::-1]
    assert (first.has_more, second.has_more, last.has_more) == (True, True, False)
    ascending = files.list(PROJECT, after=ids[0], order="asc")
    assert [file.file_id for file in ascending.items] == ids[1:]
    assert files.list(PROJECT, purpose="evals").items == []


def test_the_same_content_uploaded_and_deleted_at_once_is_never_lost(files: FileStore) -> None:
    kept: list[str] = []

    def upload_and_delete() -> None:
        for _ in range(8):
            doomed = files.create(PROJECT, "t.jsonl", "fine-tune", [line()])
            survivor = files.create(PROJECT, "t.jsonl", "fine-tune", [line()])
            files.delete(PROJECT, doomed.file_id)
            kept.append(survivor.file_id)
            files.content(PROJECT, survivor.file_id).close()
            files.delete(PROJECT, survivor.file_id)

    threads = [threading.Thread(target=upload_and_delete) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(kept) == 32
    assert files.list(PROJECT).items == []
