"""Uploaded files: checked while they arrive, kept by content, listed by project."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, BinaryIO

from sqlalchemy import Connection, Row, func, insert, select, text, update

from adapters_store.blobs import BlobStore, StagedBlob
from finetune.file_validation import FileReport, FileValidator, read_examples
from finetune.jobs.job import Page
from loraway.database import Database
from loraway.errors import InvalidRequest, InvalidTrainingFile, NotFound, PayloadTooLarge
from loraway.ids import FILE, FileId, ProjectId, new_id
from loraway.schema import files

#: What a file may be for.
PURPOSES = ("fine-tune",)
MAX_FILE_BYTES = 1 << 30


class FileStatus(StrEnum):
    """Whether a file can be used."""

    PROCESSED = "processed"
    #: Some of its lines are bad; `status_details` lists them.
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class FileObject:
    """An uploaded file, with OpenAI's fields."""

    file_id: FileId
    project_id: ProjectId
    filename: str
    purpose: str
    #: Size.
    bytes: int
    sha256: str
    status: FileStatus
    status_details: str | None
    #: Examples in it.
    example_count: int
    created_at: float


class FileStore:
    """Keeps uploaded files. Owns the table `files`; the bytes lie in the blob store."""

    def __init__(self, database: Database, blobs: BlobStore, max_bytes: int = MAX_FILE_BYTES) -> None:
        self._database = database
        self._blobs = blobs
        self._max_bytes = max_bytes

    def create(
        self, project_id: ProjectId, filename: str, purpose: str, stream: Iterable[bytes]
    ) -> FileObject:
        """Store a file from its chunks, in constant memory.

        Raises InvalidTrainingFile, which lists the bad lines, for a file that cannot be trained on; it is
        kept with status `error`. Raises InvalidRequest (purpose) and PayloadTooLarge, and keeps nothing.
        """
        if purpose not in PURPOSES:
            supported = ", ".join(map(repr, PURPOSES))
            raise InvalidRequest(f"purpose is {purpose[:40]!r}; supported: {supported}.", param="purpose")
        validator = FileValidator()
        staged = self._blobs.stage(_checked(stream, validator, self._max_bytes))
        try:
            report = validator.finish()
            file = self._insert(project_id, _plain_name(filename), purpose, staged, report)
        finally:
            self._blobs.discard(staged)
        if file.status is FileStatus.ERROR:
            raise InvalidTrainingFile(
                f"{file.filename} ({file.file_id}) cannot be trained on. {report.summary}", param="file"
            )
        return file

    def get(self, project_id: ProjectId, file_id: str) -> FileObject:
        """The project's file. Raises NotFound."""
        with self._database.read() as connection:
            return _read(connection, project_id, file_id)

    def list(
        self,
        project_id: ProjectId,
        purpose: str | None = None,
        after: str | None = None,
        limit: int = 10_000,
        order: str = "desc",
    ) -> Page[FileObject]:
        """The project's files, newest first unless `order` is "asc"."""
        is_ascending = order == "asc"
        query = select(files).where(files.c.project_id == project_id, files.c.deleted_at.is_(None))
        if purpose is not None:
            query = query.where(files.c.purpose == purpose)
        if after is not None:
            query = query.where(files.c.id > after if is_ascending else files.c.id < after)
        query = query.order_by(files.c.id if is_ascending else files.c.id.desc()).limit(limit + 1)
        with self._database.read() as connection:
            found = [_file(row) for row in connection.execute(query)]
        return Page(found[:limit], has_more=len(found) > limit)

    def content(self, project_id: ProjectId, file_id: str) -> BinaryIO:
        """The bytes as uploaded, to be closed by the caller. Raises NotFound."""
        file = self.get(project_id, file_id)
        try:
            return self._blobs.open(file.sha256)
        except FileNotFoundError as error:  # deleted between the two
            raise NotFound(f"There is no file {file_id[:80]!r} in this project.") from error

    def examples(self, project_id: ProjectId, file_id: str) -> Iterator[dict[str, Any]]:
        """The examples of a file that was found good, in order. Raises NotFound."""
        with self.content(project_id, file_id) as source:
            yield from read_examples(source)

    def delete(self, project_id: ProjectId, file_id: str) -> None:
        """Forget a file; its bytes go when no other file has the same. Raises NotFound."""
        with self._database.write() as connection:
            file = _read(connection, project_id, file_id)
            _lock_content(connection, file.sha256)
            gone = update(files).where(files.c.id == file_id, files.c.deleted_at.is_(None))
            connection.execute(gone.values(deleted_at=time.time()))
            same = select(func.count()).where(files.c.sha256 == file.sha256, files.c.deleted_at.is_(None))
            if connection.execute(same).scalar_one() == 0:
                self._blobs.delete(file.sha256)

    def _insert(
        self, project_id: ProjectId, filename: str, purpose: str, staged: StagedBlob, report: FileReport
    ) -> FileObject:
        file = FileObject(
            file_id=FileId(new_id(FILE)),
            project_id=project_id,
            filename=filename,
            purpose=purpose,
            bytes=staged.size_bytes,
            sha256=staged.sha256,
            status=FileStatus.PROCESSED if report.is_valid else FileStatus.ERROR,
            status_details=report.summary.replace("\0", "") or None,
            example_count=report.example_count,
            created_at=time.time(),
        )
        with self._database.write() as connection:
            _lock_content(connection, staged.sha256)
            self._blobs.commit(staged)
            connection.execute(
                insert(files).values(
                    id=file.file_id,
                    project_id=project_id,
                    filename=filename,
                    purpose=purpose,
                    bytes=file.bytes,
                    sha256=file.sha256,
                    status=file.status,
                    status_details=file.status_details,
                    lines=file.example_count,
                    created_at=file.created_at,
                )
            )
        return file


def _checked(stream: Iterable[bytes], validator: FileValidator, max_bytes: int) -> Iterator[bytes]:
    """The stream itself, shown to the validator on its way."""
    size_bytes = 0
    for chunk in stream:
        size_bytes += len(chunk)
        if size_bytes > max_bytes:
            raise PayloadTooLarge(f"The file has more than {max_bytes} bytes.", param="file")
        validator.feed(chunk)
        yield chunk


def _plain_name(filename: str) -> str:
    """The name without folders and control characters."""
    name = filename.replace("\\", "/").rsplit("/", 1)[-1]
    return "".join(character for character in name if character.isprintable())[:255] or "upload.jsonl"


def _lock_content(connection: Connection, sha256: str) -> None:
    """One file of this content at a time is made or deleted; on SQLite every writer waits anyway."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(hashtext(:sha256))"), {"sha256": sha256})


def _read(connection: Connection, project_id: ProjectId, file_id: str) -> FileObject:
    mine = select(files).where(
        files.c.id == file_id, files.c.project_id == project_id, files.c.deleted_at.is_(None)
    )
    row = connection.execute(mine).first()
    if row is None:
        raise NotFound(f"There is no file {file_id[:80]!r} in this project.")
    return _file(row)


def _file(row: Row[Any]) -> FileObject:
    return FileObject(
        file_id=FileId(row.id),
        project_id=ProjectId(row.project_id),
        filename=row.filename,
        purpose=row.purpose,
        bytes=row.bytes,
        sha256=row.sha256,
        status=FileStatus(row.status),
        status_details=row.status_details,
        example_count=row.lines or 0,
        created_at=row.created_at,
    )
