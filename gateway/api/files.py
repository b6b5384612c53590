"""`/v1/files`: training files; checked while they are stored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, BinaryIO, Literal

from fastapi import APIRouter, Depends, Form, Query, Request, Response, UploadFile
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from finetune.files import FileObject as StoredFile
from finetune.files import FileStore
from gateway.api.routing import After, ListOf, Order, Project, api_router
from loraway.errors import InvalidRequest

_CHUNK_BYTES = 2**20
MAX_PAGE = 10_000


class FileObject(BaseModel):
    """OpenAI's file."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["uploaded", "processed", "error"]
    #: What is wrong with which line, where `status` is error.
    status_details: str | None
    expires_at: int | None = None


class DeletedFile(BaseModel):
    """What is left of a deleted file."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


async def refuse_unknown_fields(request: Request) -> None:
    """Raise for a form field that would be ignored, such as `expires_after`."""
    for name in await request.form():
        if name not in ("file", "purpose"):
            raise InvalidRequest(f"{name[:64]!r} is not supported; leave it out.", param=name[:64])


class FileRoutes:
    """The routes of files."""

    def __init__(self, files: FileStore) -> None:
        self._files = files

    def router(self) -> APIRouter:
        router = api_router("Files")
        router.post("/v1/files", dependencies=[Depends(refuse_unknown_fields)])(self.create)
        router.get("/v1/files")(self.list_files)
        router.get("/v1/files/{file_id}")(self.retrieve)
        router.get("/v1/files/{file_id}/content", response_class=Response)(self.read_content)
        router.delete("/v1/files/{file_id}")(self.delete)
        return router

    def create(
        self, project: Project, file: UploadFile, purpose: Annotated[str, Form(max_length=64)]
    ) -> FileObject:
        """Store a training file.

        One with bad lines is refused with their numbers, and kept with `status: error`.
        """
        # The framework has spooled it to the disk: its parts may come in any order.
        return _object(self._files.create(project, file.filename or "", purpose, _chunks(file.file)))

    def list_files(
        self,
        project: Project,
        purpose: Annotated[str | None, Query(max_length=64)] = None,
        after: After = None,
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = MAX_PAGE,
        order: Order = "desc",
    ) -> ListOf[FileObject]:
        """The files, newest first unless `order=asc`."""
        page = self._files.list(project, purpose=purpose, after=after, limit=limit, order=order)
        return ListOf.of([_object(item) for item in page.items], page.has_more)

    def retrieve(self, project: Project, file_id: str) -> FileObject:
        """One file."""
        return _object(self._files.get(project, file_id))

    def read_content(self, project: Project, file_id: str) -> StreamingResponse:
        """The bytes as they were uploaded."""
        file = self._files.get(project, file_id)
        stream = self._files.content(project, file_id)
        headers = {"content-length": str(file.bytes), "content-disposition": "attachment"}
        return StreamingResponse(
            _chunks_then_close(stream), headers=headers, media_type="application/octet-stream"
        )

    def delete(self, project: Project, file_id: str) -> DeletedFile:
        """Forget a file. Datasets made from it stay."""
        self._files.delete(project, file_id)
        return DeletedFile(id=file_id)


def _object(file: StoredFile) -> FileObject:
    return FileObject(
        id=file.file_id,
        bytes=file.bytes,
        created_at=int(file.created_at),
        filename=file.filename,
        purpose=file.purpose,
        status=file.status.value,
        status_details=file.status_details,
    )


def _chunks(stream: BinaryIO) -> Iterator[bytes]:
    while chunk := stream.read(_CHUNK_BYTES):
        yield chunk


def _chunks_then_close(stream: BinaryIO) -> Iterator[bytes]:
    with stream:
        yield from _chunks(stream)
