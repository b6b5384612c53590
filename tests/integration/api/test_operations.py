"""Health, readiness and metrics."""

from __future__ import annotations

import httpx
import pytest
from fastapi import Request

from gateway.api.operations import OperationsRoutes
from loraway.errors import AuthenticationFailed
from loraway.secrets import read_or_create_secret
from tests.integration.api.conftest import Driven
from tests.integration.api.plane import BASE, ControlPlane, add_replica


def get(plane: ControlPlane, path: str) -> httpx.Response:
    """Without a key."""
    return httpx.get(plane.url + path, trust_env=False)


def test_a_gateway_without_replicas_is_healthy_but_not_ready(plane: ControlPlane) -> None:
    assert get(plane, "/healthz").json() == {"status": "ok"}
    answer = get(plane, "/readyz")
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "no_replica_ready"
    assert answer.headers["retry-after"]


def test_it_is_ready_once_a_replica_is(driven: Driven) -> None:
    add_replica(driven.plane.parts.database)
    driven.portal.call(driven.plane.until_ready)
    answer = get(driven.plane, "/readyz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ready", "replicas": {BASE: 1}})


def test_metrics_are_prometheus_text(plane: ControlPlane) -> None:
    answer = get(plane, "/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "# TYPE " in answer.text


def test_metrics_are_for_this_machine_or_the_internal_key(plane: ControlPlane) -> None:
    parts = plane.parts
    internal_key = read_or_create_secret(parts.settings, "internal")
    routes = OperationsRoutes(parts.database, parts.snapshots, parts.metrics, internal_key)
    remote = Request({"type": "http", "client": ("192.0.2.1", 5), "headers": []})

    for authorization in (None, "Bearer wrong", f"Bearer {plane.mine.secret}", "Bearer é"):
        with pytest.raises(AuthenticationFailed):
            routes.read_metrics(remote, authorization)
    assert routes.read_metrics(remote, f"Bearer {internal_key}").status_code == 200


def test_the_interface_describes_itself(plane: ControlPlane) -> None:
    paths = get(plane, "/openapi.json").json()["paths"]
    assert {"/v1/models", "/v1/files", "/v1/fine_tuning/jobs", "/v1/adapters/{name}/rollback"} <= set(paths)
    assert get(plane, "/docs").status_code == 200
