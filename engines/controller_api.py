"""The controller's internal HTTP interface: loopback or a private net, with a key of our own.

POST /internal/versions/{version_id}/load    200 {"replicas": [...]} once it is loaded and proved somewhere
POST /internal/wake                          204: look for work now
GET  /internal/healthz                       200 {"status": "ok", "replicas": {...}}
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from engines.fleet import Fleet
from loraway.errors import AuthenticationFailed, LorawayError, error_body
from loraway.ids import ReplicaId, VersionId

#: When an error that passes does not say when to try again.
_RETRY_SECONDS = 2


def create_controller_api(
    internal_key: str,
    fleet: Fleet,
    ensure_loaded: Callable[[VersionId], Awaitable[list[ReplicaId]]],
    wake: Callable[[], None],
) -> Starlette:
    """The ASGI application."""
    expected = f"Bearer {internal_key}".encode()

    def check_key(request: Request) -> None:
        given = request.headers.get("authorization", "").encode()
        if not hmac.compare_digest(given, expected):
            raise AuthenticationFailed("This interface takes the deployment's internal key only.")

    async def load(request: Request) -> Response:
        check_key(request)
        replicas = await ensure_loaded(VersionId(request.path_params["version_id"]))
        return JSONResponse({"replicas": replicas})

    async def wake_up(request: Request) -> Response:
        check_key(request)
        wake()
        return Response(status_code=204)

    async def health(_: Request) -> Response:
        states = {replica.replica_id: str(replica.state) for replica in fleet.replicas.values()}
        return JSONResponse({"status": "ok", "replicas": states})

    return Starlette(
        routes=[
            Route("/internal/versions/{version_id}/load", load, methods=["POST"]),
            Route("/internal/wake", wake_up, methods=["POST"]),
            Route("/internal/healthz", health),
        ],
        exception_handlers={LorawayError: _answer},
    )


async def _answer(_: Request, error: Exception) -> Response:
    assert isinstance(error, LorawayError)
    headers = {}
    if error.status == 503:
        headers["retry-after"] = str(error.retry_after_seconds or _RETRY_SECONDS)
    return JSONResponse(error_body(error), status_code=error.status, headers=headers)
