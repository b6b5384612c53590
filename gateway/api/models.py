"""`/v1/models`: every name that may go into `model`: base models, adapters, versions."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel
from sqlalchemy import func, select

from adapters_store.registry import Registry
from adapters_store.version import VersionState
from gateway.api.routing import ListOf, Project, api_router
from loraway.database import Database
from loraway.errors import ModelNotFound
from loraway.ids import ProjectId
from loraway.schema import base_models, replicas

BASE_OWNER = "loraway"


class ModelObject(BaseModel):
    """A model, with OpenAI's fields and those that vLLM adds."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    #: The weights that answer: a base model, or a version for an adapter's name.
    root: str
    #: The base model of an adapter.
    parent: str | None
    max_model_len: int


class ModelRoutes:
    """The routes of models."""

    def __init__(self, database: Database, registry: Registry, max_model_len: int) -> None:
        self._database = database
        self._registry = registry
        self._max_model_len = max_model_len

    def router(self) -> APIRouter:
        router = api_router("Models")
        router.get("/v1/models")(self.list_models)
        router.get("/v1/models/{model}")(self.retrieve)
        return router

    def list_models(self, project: Project) -> ListOf[ModelObject]:
        """Base models first, then each adapter and its versions."""
        return ListOf.of(self._models(project))

    def retrieve(self, project: Project, model: str) -> ModelObject:
        """One model by its name."""
        models = {found.id: found for found in self._models(project)}
        if model not in models:
            raise ModelNotFound.near(model, models)
        return models[model]

    def _models(self, project: ProjectId) -> list[ModelObject]:
        bases = sorted(self._base_models().items())
        models = [self._model(name, created, BASE_OWNER, name, None) for name, created in bases]
        for adapter in self._registry.adapters(project):
            base = adapter.base_model
            if adapter.alias is not None and adapter.serving is not None:
                created = adapter.alias.updated_at
                models.append(self._model(adapter.name, created, project, adapter.serving, base))
            for version in self._registry.versions(project, adapter.name):
                if version.state is not VersionState.RETIRED:
                    models.append(self._model(version.name, version.created_at, project, version.name, base))
        return models

    def _base_models(self) -> dict[str, float]:
        """Since when each is known: as a folder, or because a replica serves it."""
        served = (
            select(replicas.c.base_model, func.min(replicas.c.created_at))
            .where(replicas.c.state != "gone")
            .group_by(replicas.c.base_model)
        )
        folders = select(base_models.c.name, base_models.c.created_at)
        with self._database.read() as connection:
            rows = [*connection.execute(served), *connection.execute(folders)]
        return {name: created for name, created in rows}  # noqa: C416 - rows are no tuples to mypy

    def _model(self, name: str, created: float, owner: str, root: str, parent: str | None) -> ModelObject:
        return ModelObject(
            id=name,
            created=int(created),
            owned_by=owner,
            root=root,
            parent=parent,
            max_model_len=self._max_model_len,
        )
