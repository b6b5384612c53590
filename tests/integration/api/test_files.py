"""Training files through the official client."""

from __future__ import annotations

import io

import openai
import pytest

from tests.integration.api.conftest import Driven, on_each_database
from tests.integration.api.plane import training_file


@on_each_database
def test_a_file_is_uploaded_listed_read_and_deleted(driven: Driven) -> None:
    files = driven.plane.openai().files
    content = training_file()

    uploaded = files.create(file=("codename.jsonl", content), purpose="fine-tune")

    assert (uploaded.object, uploaded.purpose, uploaded.status) == ("file", "fine-tune", "processed")
    assert (uploaded.filename, uploaded.bytes) == ("codename.jsonl", len(content))
    assert files.retrieve(uploaded.id) == uploaded
    assert list(files.list()) == [uploaded]
    assert files.content(uploaded.id).read() == content
    deleted = files.delete(uploaded.id)
    assert (deleted.id, deleted.deleted, deleted.object) == (uploaded.id, True, "file")
    assert list(files.list()) == []
    for call in (files.retrieve, files.content, files.delete):
        with pytest.raises(openai.NotFoundError):
            call(uploaded.id)


@on_each_database
def test_files_are_listed_page_by_page_by_purpose_and_order(driven: Driven) -> None:
    files = driven.plane.openai().files
    ids = [files.create(file=io.BytesIO(training_file(n)), purpose="fine-tune").id for n in (10, 11, 12)]
    assert [file.id for file in files.list(limit=2)] == ids[::-1]
    assert [file.id for file in files.list(order="asc", limit=1)] == ids
    assert [file.id for file in files.list(after=ids[1])] == ids[:1]
    assert len(list(files.list(purpose="fine-tune"))) == 3
    assert list(files.list(purpose="batch")) == []


@on_each_database
def test_bad_lines_are_named_by_number_and_the_file_is_kept_as_error(driven: Driven) -> None:
    files = driven.plane.openai().files
    lines = training_file().splitlines()
    lines[2] = b"{not json"
    lines[7] = b'{"messages": []}'

    with pytest.raises(openai.BadRequestError) as caught:
        files.create(file=("bad.jsonl", b"\n".join(lines)), purpose="fine-tune")

    assert caught.value.code == "invalid_training_file"
    assert caught.value.param == "file"
    assert "line 3" in caught.value.message and "line 8" in caught.value.message
    (kept,) = files.list()
    assert kept.status == "error"
    assert kept.status_details is not None and "line 8" in kept.status_details
    with pytest.raises(openai.BadRequestError) as refused:
        driven.plane.openai().fine_tuning.jobs.create(model="smollm2-135m", training_file=kept.id)
    assert refused.value.param == "training_file"


@on_each_database
def test_a_file_over_the_limit_is_refused_and_not_kept(driven: Driven) -> None:
    limit = driven.plane.parts.settings.gateway.max_upload_bytes
    files = driven.plane.openai().files
    for size in (limit + 1, limit + 2**20):  # the store's own check, and the one at the edge
        with pytest.raises(openai.APIStatusError) as caught:
            files.create(file=b" " * size, purpose="fine-tune")
        assert caught.value.status_code == 413
        assert caught.value.code == "request_too_large"
    assert list(files.list()) == []


@on_each_database
def test_an_upload_without_a_length_is_cut_off_at_the_limit(driven: Driven) -> None:
    limit = driven.plane.parts.settings.gateway.max_upload_bytes
    head = b'--b\r\ncontent-disposition: form-data; name="file"; filename="f"\r\n\r\n'

    def body() -> object:
        yield head
        for _ in range(2 * limit // 65_536):
            yield b" " * 65_536

    answer = driven.plane.http().post(
        "/v1/files",
        content=body(),  # type: ignore[arg-type]
        headers={"content-type": "multipart/form-data; boundary=b"},
    )
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "request_too_large"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"purpose": "batch"}, "purpose"),
        ({}, "purpose"),
        ({"purpose": "fine-tune", "expires_after[anchor]": "created_at"}, "expires_after[anchor]"),
    ],
)
def test_a_form_that_asks_for_something_else_is_refused(
    driven: Driven, fields: dict[str, str], param: str
) -> None:
    answer = driven.plane.http().post("/v1/files", data=fields, files={"file": training_file()})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert list(driven.plane.openai().files.list()) == []


@on_each_database
def test_a_body_that_is_no_form_is_refused(driven: Driven) -> None:
    http = driven.plane.http()
    broken = {"content-type": "multipart/form-data; boundary=b"}
    for answer in (
        http.post("/v1/files", json={"purpose": "fine-tune"}),
        http.post("/v1/files", content=b"--b\r\nno header", headers=broken),
        http.post("/v1/files", content=b"x", headers={"content-type": "multipart/form-data"}),
    ):
        assert answer.status_code == 400
        assert answer.json()["error"]["type"] == "invalid_request_error"


@on_each_database
def test_a_folder_in_the_filename_is_dropped(driven: Driven) -> None:
    uploaded = driven.plane.openai().files.create(
        file=("../../etc/passwd.jsonl", training_file()), purpose="fine-tune"
    )
    assert uploaded.filename == "passwd.jsonl"
