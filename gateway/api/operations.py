"""For those who run it: `/healthz`, `/readyz`, `/metrics`. Without an API key."""

from __future__ import annotations

import hmac
from ipaddress import ip_address
from typing import Annotated, Literal

from fastapi import APIRouter, Header, Request, Response
from pydantic import BaseModel
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from gateway.api.errors import ERROR_RESPONSES
from gateway.metrics import Metrics
from gateway.routing.source import SnapshotSource
from loraway.database import Database
from loraway.errors import AuthenticationFailed, NoReplicaReady, Unavailable

_RETRY_SECONDS = 1
PROMETHEUS_TEXT = "text/plain; version=0.0.4; charset=utf-8"


class Health(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """The gateway can serve."""

    status: Literal["ready"] = "ready"
    #: Base model and how many of its replicas are ready.
    replicas: dict[str, int]


class OperationsRoutes:
    """The routes that load balancers, supervisors and Prometheus call."""

    def __init__(
        self, database: Database, snapshots: SnapshotSource, metrics: Metrics, internal_key: str
    ) -> None:
        self._database = database
        self._snapshots = snapshots
        self._metrics = metrics
        self._internal_key = internal_key

    def router(self) -> APIRouter:
        router = APIRouter(tags=["Operations"], responses=ERROR_RESPONSES)
        router.get("/healthz")(self.is_healthy)
        router.get("/readyz")(self.is_ready)
        router.get("/metrics", response_class=Response)(self.read_metrics)
        return router

    def is_healthy(self) -> Health:
        """Whether the process answers."""
        return Health()

    def is_ready(self) -> Readiness:
        """Whether requests can be served: the database answers, and at least one replica is ready."""
        try:
            with self._database.read() as connection:
                connection.execute(text("SELECT 1"))
        except SQLAlchemyError as error:
            message = "The database does not answer."
            raise Unavailable(message, retry_after_seconds=_RETRY_SECONDS) from error
        snapshot = self._snapshots.current
        if snapshot.revision < 0:
            message = "The routing snapshot was not read yet."
            raise Unavailable(message, retry_after_seconds=_RETRY_SECONDS)
        ready = {
            base: sum(replica.is_ready for replica in replicas)
            for base, replicas in snapshot.replicas.items()
        }
        if not any(ready.values()):
            raise NoReplicaReady("No replica is ready.", retry_after_seconds=_RETRY_SECONDS)
        return Readiness(replicas=ready)

    def read_metrics(
        self, request: Request, authorization: Annotated[str | None, Header(include_in_schema=False)] = None
    ) -> Response:
        """Prometheus text of all workers.

        It names every project's models, so only this machine may read it, or who has the internal key.
        """
        if not _is_local(request) and not self._is_internal(authorization or ""):
            raise AuthenticationFailed(
                "Metrics are for this machine, or for the internal key as bearer token."
            )
        return Response(self._metrics.render(), media_type=PROMETHEUS_TEXT)

    def _is_internal(self, authorization: str) -> bool:
        expected = f"Bearer {self._internal_key}"
        return hmac.compare_digest(authorization.encode("latin-1", "replace"), expected.encode())


def _is_local(request: Request) -> bool:
    if request.client is None:
        return False
    try:
        return ip_address(request.client.host).is_loopback
    except ValueError:  # a name, which no listening socket of ours gives
        return False
