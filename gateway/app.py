"""The control plane: a FastAPI app put together from its parts; the data plane takes its paths before it."""

from __future__ import annotations

from fastapi import FastAPI

import loraway
from finetune.datasets.snapshot import DatasetStore
from finetune.jobs.submission import JobSubmission
from gateway.api.adapters import AdapterRoutes
from gateway.api.completions import CompletionRoutes
from gateway.api.edge import Edge, Limits
from gateway.api.errors import install_error_handlers
from gateway.api.feedback import FeedbackRoutes
from gateway.api.files import FileRoutes
from gateway.api.jobs import JobRoutes
from gateway.api.models import ModelRoutes
from gateway.api.operations import OperationsRoutes
from gateway.parts import GatewayParts
from loraway.secrets import read_or_create_secret

#: Largest JSON body; prompts go to the data plane.
MAX_JSON_BYTES = 2**20
#: How long a rollback may take: a cold version has to be loaded and proved.
ROLLBACK_SECONDS = 60.0


def create_app(parts: GatewayParts) -> FastAPI:
    """The app over these parts, which the worker process starts and stops."""
    settings = parts.settings
    app = FastAPI(
        title="loraway",
        version=loraway.__version__,
        summary="OpenAI-compatible gateway that trains on its own traffic",
        redoc_url=None,
    )
    for routes in (
        ModelRoutes(parts.database, parts.registry, settings.engine.max_model_len),
        CompletionRoutes(parts.database),
        FeedbackRoutes(parts.database),
        FileRoutes(parts.files),
        JobRoutes(parts.jobs, _submission(parts)),
        AdapterRoutes(parts.registry, parts.controller, parts.snapshots, ROLLBACK_SECONDS),
        OperationsRoutes(
            parts.database, parts.snapshots, parts.metrics, read_or_create_secret(settings, "internal")
        ),
    ):
        app.include_router(routes.router())
    install_error_handlers(app)
    limits = Limits(
        json_bytes=MAX_JSON_BYTES,
        upload_bytes=settings.gateway.max_upload_bytes,
        arrival_seconds=settings.gateway.timeouts.request_arrival_seconds,
    )
    app.add_middleware(Edge, snapshots=parts.snapshots, limits=limits)
    return app


def _submission(parts: GatewayParts) -> JobSubmission:
    settings = parts.settings
    datasets = DatasetStore(parts.database, parts.files, settings.blobs_dir / "datasets", settings.trainer)
    return JobSubmission(parts.database, parts.jobs, parts.files, datasets, settings.engine.max_lora_rank)
