"""Another project's key sees nothing and changes nothing: on each route there is, and each that will be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute

from gateway.api.edge import OPEN_PATHS
from tests.integration.api.conftest import Deployed
from tests.integration.api.plane import BASE, ControlPlane, training_file

#: What the intruder sends where a body is needed, with the owner's ids filled in.
BODIES: dict[tuple[str, str], dict[str, Any]] = {
    ("POST", "/v1/chat/completions/{completion_id}"): {"metadata": {"stolen": "yes"}},
    ("POST", "/v1/feedback"): {"completion_id": "{completion_id}", "score": 1},
    ("POST", "/v1/fine_tuning/jobs"): {"model": BASE, "training_file": "{file_id}"},
    ("POST", "/v1/fine_tunes"): {
        "model": BASE,
        "training_data": {"traffic": {"metadata": {"topic": "codename"}}},
    },
}
#: The intruder may do this; it is to stay without effect on the owner.
HARMLESS = {("POST", "/v1/files"), ("GET", "/v1/models")}


@dataclass(frozen=True, slots=True)
class Owned:
    """One of everything, in one project."""

    plane: ControlPlane
    #: Values of the paths' parameters, by name.
    ids: dict[str, str]

    def fill(self, template: str) -> str:
        for name, value in self.ids.items():
            template = template.replace(f"{{{name}}}", value)
        return template

    def everything(self) -> dict[str, Any]:
        """All that the owner can read."""
        with self.plane.http() as http:
            paths = (self.fill(path) for method, path in sorted(routes(self.plane)) if method == "GET")
            return {path: http.get(path).text for path in paths}


def routes(plane: ControlPlane) -> set[tuple[str, str]]:
    """Method and path of each route that needs a key."""
    return {
        (method, route.path)
        for route in plane.app.routes
        if isinstance(route, APIRoute) and route.path not in OPEN_PATHS
        for method in route.methods
    }


@pytest.fixture
def owned(deployed: Deployed) -> Iterator[Owned]:
    deployed.train_and_roll_out()
    deployed.train_and_roll_out()
    plane = deployed.plane
    with plane.http() as http:
        for number in range(12):
            completion_id = deployed.portal.call(
                lambda number=number: plane.store(f"{number}?", metadata={"topic": "codename"})
            )
        http.post("/v1/feedback", json={"completion_id": completion_id, "score": 1}).raise_for_status()
        upload = http.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": training_file()})
        body = {"model": BASE, "training_file": upload.json()["id"]}
        job = http.post("/v1/fine_tuning/jobs", json=body)
    ids = {
        "completion_id": completion_id,
        "file_id": upload.json()["id"],
        "job_id": job.json()["id"],
        "name": "codename",
        "model": "codename@1",
    }
    yield Owned(plane, ids)


def send(http: httpx.Client, owned: Owned, method: str, path: str) -> httpx.Response:
    """The request for this route with the owner's ids in it."""
    if (method, path) == ("POST", "/v1/files"):
        return http.post(path, data={"purpose": "fine-tune"}, files={"file": training_file(11)})
    body = BODIES.get((method, path))
    filled = {k: owned.fill(v) if isinstance(v, str) else v for k, v in body.items()} if body else None
    return http.request(method, owned.fill(path), json=filled)


def test_each_route_shows_and_does_nothing_with_another_projects_objects(owned: Owned) -> None:
    before = owned.everything()
    with owned.plane.http(owned.plane.other) as intruder:
        for method, path in sorted(routes(owned.plane)):
            answer = send(intruder, owned, method, path)
            if (method, path) in HARMLESS:
                assert answer.status_code == 200, (method, path, answer.text)
            elif "{" in path:
                assert answer.status_code == 404, (method, path, answer.text)
                assert set(answer.json()) == {"error"}
            elif method == "GET":
                assert answer.json()["data"] == [], (method, path)
            else:
                assert answer.status_code in (400, 404), (method, path, answer.text)
            secrets = {*owned.ids.values()} - {owned.fill(part) for part in path.split("/")}
            if answer.status_code == 200:
                assert not any(secret in answer.text for secret in secrets), (method, path)
    assert owned.everything() == before


def test_the_same_requests_succeed_for_the_owner(owned: Owned) -> None:
    """So the test above fails on what it is to find, not on requests that nobody could make."""
    last = {"DELETE": 2, "POST": 1}
    with owned.plane.http() as http:
        for method, path in sorted(routes(owned.plane), key=lambda route: (last.get(route[0], 0), route)):
            answer = send(http, owned, method, path)
            assert answer.status_code == 200, (method, path, answer.text)
            if method == "GET" and "{" not in path:
                assert answer.json()["data"], path


def test_each_route_needs_a_key(owned: Owned) -> None:
    wrong: list[dict[str, str]] = [
        {},
        {"authorization": "Bearer sk-loraway-wrong"},
        {"authorization": f"Basic {owned.plane.mine.secret}"},
        {"authorization": owned.plane.mine.secret},
        {"authorization": "Bearer"},
        {"x-api-key": "sk-loraway-wrong"},
        {"api-key": owned.plane.mine.secret},
    ]
    before = owned.everything()
    with httpx.Client(base_url=owned.plane.url, trust_env=False) as http:
        for headers in wrong:
            http.headers = httpx.Headers(headers)
            answers = {send(http, owned, method, path).text for method, path in routes(owned.plane)}
            assert len(answers) == 1, "the same answer everywhere"
            assert '"invalid_api_key"' in answers.pop()
    assert owned.everything() == before
