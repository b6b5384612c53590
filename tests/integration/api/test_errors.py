"""Errors in the shape of OpenAI, with the place; the id of each answer; limits held before work is done."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from sqlalchemy.exc import OperationalError

from gateway.keys import KeyStore
from tests.integration.api.conftest import Driven
from tests.integration.api.plane import ControlPlane

JSON = {"content-type": "application/json"}


def error_of(answer: httpx.Response) -> dict[str, Any]:
    """The error, after checking that it has OpenAI's shape."""
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert isinstance(body["error"]["message"], str) and body["error"]["message"]
    error: dict[str, Any] = body["error"]
    return error


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code", "param"),
    [
        ("GET", "/v1/nothing", None, 404, "not_found", None),
        ("GET", "/", None, 404, "not_found", None),
        ("DELETE", "/v1/models", None, 405, "method_not_allowed", None),
        ("GET", "/v1/files?limit=0", None, 400, "invalid_request_error", "limit"),
        ("GET", "/v1/files?limit=ten", None, 400, "invalid_request_error", "limit"),
        ("GET", "/v1/chat/completions?order=up", None, 400, "invalid_request_error", "order"),
        ("GET", "/v1/chat/completions/a%00b", None, 400, "invalid_request_error", None),
        ("GET", "/v1/feedback?label=a%00b", None, 400, "invalid_request_error", None),
        ("POST", "/v1/feedback", b"{not json", 400, "invalid_json", None),
        ("POST", "/v1/feedback", b'{"completion_id": NaN}', 400, "invalid_json", None),
        ("POST", "/v1/feedback", b'{"completion_id": "\\ud800"}', 400, "invalid_json", None),
        ("POST", "/v1/feedback", b"[]", 400, "invalid_request_error", "body"),
        ("POST", "/v1/feedback", b"", 400, "invalid_request_error", "body"),
        ("POST", "/v1/feedback", b"{}", 400, "invalid_request_error", "completion_id"),
        ("POST", "/v1/fine_tuning/jobs", b'"text"', 400, "invalid_request_error", "body"),
        ("POST", "/v1/fine_tuning/jobs", b"{}", 400, "invalid_request_error", "model"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(
    plane: ControlPlane,
    method: str,
    path: str,
    body: bytes | None,
    status: int,
    code: str,
    param: str | None,
) -> None:
    answer = plane.http().request(method, path, content=body, headers=JSON)
    assert answer.status_code == status, answer.text
    error = error_of(answer)
    assert (error["code"], error["param"]) == (code, param)


def test_the_example_in_the_documentation_is_answered_as_shown(plane: ControlPlane) -> None:
    answer = plane.http().post("/v1/feedback", json={"completion_id": "x", "score": "good"})
    page = (Path(__file__).parents[3] / "docs" / "api.md").read_text()
    assert json.dumps(answer.json(), indent=2) in page


def test_a_body_that_is_not_sent_as_json_is_explained(plane: ControlPlane) -> None:
    answer = plane.http().post("/v1/feedback", data={"score": "1"})
    assert answer.status_code == 400
    assert "content-type: application/json" in error_of(answer)["message"]


def test_a_client_without_a_content_type_is_understood(driven: Driven) -> None:
    body = json.dumps({"completion_id": driven.store(), "score": 1}).encode()
    answer = driven.plane.http().post("/v1/feedback", content=body)
    assert answer.status_code == 200, answer.text


def test_the_clients_request_id_comes_back(plane: ControlPlane) -> None:
    http = plane.http()
    given = http.get("/v1/models", headers={"x-request-id": "mine-1"})
    made = [http.get("/v1/models").headers["x-request-id"] for _ in range(2)]
    insane = http.get("/v1/models", headers={"x-request-id": "a b<script>"})
    assert given.headers["x-request-id"] == "mine-1"
    assert made[0] != made[1] and all(request_id.startswith("req_") for request_id in made)
    assert insane.headers["x-request-id"].startswith("req_")


def test_a_key_may_come_as_anthropics_clients_send_it(plane: ControlPlane) -> None:
    answer = httpx.get(f"{plane.url}/v1/models", headers={"x-api-key": plane.mine.secret}, trust_env=False)
    assert answer.status_code == 200


def test_a_revoked_key_is_refused_soon_and_a_new_one_let_in(plane: ControlPlane) -> None:
    keys = KeyStore(plane.parts.database)
    secret, key = keys.create(plane.mine.project_id, "second")
    client = openai.OpenAI(base_url=f"{plane.url}/v1", api_key=secret, max_retries=0)
    eventually_answers(client, openai.AuthenticationError, is_let_in=True)
    keys.revoke(plane.mine.project_id, key.key_id)
    eventually_answers(client, openai.AuthenticationError, is_let_in=False)
    assert list(plane.openai().models.list())


def eventually_answers(client: openai.OpenAI, refusal: type[Exception], *, is_let_in: bool) -> None:
    """Ask until the worker's snapshot has followed; each is one quick request, so a hundred are enough."""
    for _ in range(500):
        try:
            client.models.list()
        except refusal:
            if not is_let_in:
                return
        else:
            if is_let_in:
                return
    pytest.fail("the snapshot did not follow")


def test_a_json_body_over_a_mebibyte_is_refused_announced_or_not(plane: ControlPlane) -> None:
    big = json.dumps({"completion_id": "x", "comment": "y" * 2**20}).encode()

    def unannounced() -> Iterator[bytes]:
        yield from (big[at : at + 65_536] for at in range(0, len(big), 65_536))

    for content in (big, unannounced()):
        answer = plane.http().post("/v1/feedback", content=content, headers=JSON)
        assert answer.status_code == 413
        assert error_of(answer)["code"] == "request_too_large"


@pytest.mark.parametrize("drips", [False, True])
def test_a_body_that_does_not_arrive_in_time_is_given_up(driven: Driven, drips: bool) -> None:
    timeouts = driven.plane.parts.settings.gateway.timeouts
    assert timeouts.request_arrival_seconds == 0.5
    host, port = "127.0.0.1", int(driven.plane.url.rsplit(":", 1)[1])
    head = (
        f"POST /v1/feedback HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {driven.plane.mine.secret}\r\n"
        "content-type: application/json\r\ncontent-length: 100\r\n\r\n{"
    )
    with socket.create_connection((host, port), timeout=10) as connection:
        connection.sendall(head.encode())
        if drips:
            drip(connection)
        answer = b""
        while chunk := connection.recv(65_536):
            answer += chunk
    assert answer.startswith(b"HTTP/1.1 408")
    assert b'"request_timeout"' in answer


def drip(connection: socket.socket) -> None:
    """A byte now and then, never pausing for long, until there is an answer."""
    connection.settimeout(0.1)
    for _ in range(90):
        try:
            connection.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            connection.sendall(b" ")
        else:
            break
    connection.settimeout(10)


def test_a_database_that_does_not_answer_is_unavailable(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OperationalError("SELECT secret", {"prompt": "private"}, Exception("down"))

    monkeypatch.setattr(plane.parts.database, "read", fail)
    answer = plane.http().get("/v1/chat/completions")
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert "secret" not in error_of(answer)["message"] and "private" not in answer.text


def test_an_error_of_ours_is_a_500_that_tells_nothing_but_its_id(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("private")

    monkeypatch.setattr(plane.parts.database, "read", fail)
    answer = plane.http().get("/v1/chat/completions")
    assert answer.status_code == 500
    error = error_of(answer)
    assert error["code"] == "internal_error" and answer.headers["x-request-id"] in error["message"]
    assert "private" not in answer.text
    assert "ZeroDivisionError" in caplog.text and answer.headers["x-request-id"] in caplog.text
