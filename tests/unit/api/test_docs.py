"""docs/api.md describes each route there is, with an example."""

from __future__ import annotations

import re
from pathlib import Path

from fastapi.routing import APIRoute

from finetune.jobs.request import RequestedHyperparameters
from gateway.api.adapters import AdapterRoutes
from gateway.api.completions import CompletionRoutes
from gateway.api.feedback import FeedbackRoutes
from gateway.api.files import FileRoutes
from gateway.api.jobs import JobRoutes
from gateway.api.models import ModelRoutes
from gateway.api.operations import OperationsRoutes

DOCUMENT = Path(__file__).parents[3] / "docs" / "api.md"
ROUTES = (
    AdapterRoutes,
    CompletionRoutes,
    FeedbackRoutes,
    FileRoutes,
    JobRoutes,
    ModelRoutes,
    OperationsRoutes,
)


def served() -> set[str]:
    """`GET /v1/models` and so on; which parts the routes would call does not matter here."""
    routers = [routes.router(routes.__new__(routes)) for routes in ROUTES]
    return {
        f"{method} {route.path}"
        for router in routers
        for route in router.routes
        if isinstance(route, APIRoute)
        for method in route.methods
    }


def test_each_route_has_a_heading_and_an_example() -> None:
    sections = re.split(r"^### ", DOCUMENT.read_text(), flags=re.MULTILINE)[1:]
    described = {
        route: section
        for section in sections
        for route in re.findall(r"`([A-Z]+ /\S+)`", section.splitlines()[0])
    }
    assert set(described) == served()
    for route, section in described.items():
        assert "curl " in section, route


def test_each_hyperparameter_is_named() -> None:
    page = DOCUMENT.read_text()
    assert [name for name in RequestedHyperparameters.model_fields if f"`{name}`" not in page] == []
