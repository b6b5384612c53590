"""Examples out of an uploaded file."""

from __future__ import annotations

from collections.abc import Iterator

from finetune.datasets.example import Example, make_example
from finetune.file_validation import InvalidExample
from finetune.files import FileStatus, FileStore
from loraway.errors import InvalidRequest, InvalidTrainingFile, NotFound
from loraway.ids import ProjectId


def check_file(files: FileStore, project_id: ProjectId, file_id: str, param: str) -> None:
    """Raise InvalidRequest naming `param` unless the file is there and can be trained on."""
    try:
        file = files.get(project_id, file_id)
    except NotFound as error:
        raise InvalidRequest(error.message, param=param) from error
    if file.status is not FileStatus.PROCESSED:
        details = file.status_details or "It has bad lines."
        raise InvalidTrainingFile(f"The file {file_id!r} cannot be trained on. {details}", param=param)


def file_examples(files: FileStore, project_id: ProjectId, file_id: str) -> Iterator[Example]:
    """The file's examples, in order. Raises NotFound when it was deleted meanwhile."""
    try:
        for row in files.examples(project_id, file_id):
            yield make_example(row["messages"], row.get("tools"))
    except InvalidExample as error:
        raise InvalidTrainingFile(f"The file {file_id!r} cannot be trained on: {error}.") from error
