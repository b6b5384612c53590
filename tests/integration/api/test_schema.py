"""Whatever the app's own OpenAPI description allows, and much that it does not: never a 5xx."""

from __future__ import annotations

from dataclasses import dataclass

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings, strategies
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.schemas import APIOperation, BaseSchema
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.integration.api.conftest import Driven, on_each_database
from tests.integration.api.plane import BASE, ControlPlane, add_replica, training_file

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]

POSITIVE = {"generation_mode": GenerationMode.POSITIVE}
NEGATIVE = {"generation_mode": GenerationMode.NEGATIVE}


@dataclass(frozen=True, slots=True)
class Described:
    """What the app says of itself, a key for it, and the ids of what is there."""

    schema: BaseSchema
    authorization: str
    ids: dict[str, str]


@pytest.fixture
def described(driven: Driven) -> Described:
    plane = driven.plane
    add_replica(plane.parts.database)
    driven.portal.call(plane.until_ready)
    schema = schemathesis.openapi.from_url(f"{plane.url}/openapi.json")
    return Described(schema, f"Bearer {plane.mine.secret}", one_of_each(driven))


def one_of_each(driven: Driven) -> dict[str, str]:
    completion_id = driven.store(metadata={"topic": "codename"})
    with driven.plane.http() as http:
        http.post("/v1/feedback", json={"completion_id": completion_id, "correction": "Bluefin-7"})
        file = http.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": training_file()}).json()
        job = http.post("/v1/fine_tunes", json={"model": BASE, "training_file": file["id"]}).json()
    return {
        "completion_id": completion_id,
        "file_id": file["id"],
        "training_file": file["id"],
        "job_id": job["id"],
        "model": BASE,
    }


@on_each_database
def test_no_request_is_a_server_error(described: Described) -> None:
    operations = [result.ok() for result in described.schema.get_all_operations()]
    for operation in sorted(operations, key=lambda operation: operation.method == "delete"):
        check(operation, described)


def check(operation: APIOperation, described: Described) -> None:
    """Call it with whatever its description allows or not, on objects that are there or not."""

    @given(
        case=operation.as_strategy(**POSITIVE) | operation.as_strategy(**NEGATIVE),
        is_there=strategies.booleans(),
    )
    @settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    def call(case: schemathesis.Case, is_there: bool) -> None:
        if is_there:
            ids = {name: described.ids.get(name, value) for name, value in case.path_parameters.items()}
            case.path_parameters = ids
            if isinstance(case.body, dict):
                case.body = {k: described.ids.get(k, v) for k, v in case.body.items()}
        case.headers = {**case.headers, "Authorization": described.authorization}
        response = case.call(timeout=30)
        assert response.status_code != 401
        case.validate_response(response, checks=CHECKS)
        if response.status_code >= 400:
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}

    call()


def test_the_description_is_complete(plane: ControlPlane) -> None:
    document = httpx.get(f"{plane.url}/openapi.json", trust_env=False).json()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation.get("description"), f"{method} {path} does not say what it does"
            if path.startswith("/v1/"):
                assert operation["security"] == [{"HTTPBearer": []}], f"{method} {path}"
                assert "4XX" in operation["responses"], f"{method} {path} does not show its errors"
