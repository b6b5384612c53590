"""Every error of the control plane leaves here, in OpenAI's shape."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from sqlalchemy.exc import InterfaceError, OperationalError, TimeoutError
from starlette.exceptions import HTTPException

from loraway.errors import (
    AuthenticationFailed,
    InvalidJSON,
    InvalidRequest,
    LorawayError,
    MethodNotAllowed,
    NotFound,
    PayloadTooLarge,
    PermissionDenied,
    RequestTimedOut,
    Unavailable,
    error_body,
)

_LOG = logging.getLogger(__name__)
_RETRY_SECONDS = 1

#: What the framework raises as a bare status.
_BY_STATUS: Final[Mapping[int, type[LorawayError]]] = {
    kind.status: kind
    for kind in (
        InvalidRequest,
        AuthenticationFailed,
        PermissionDenied,
        NotFound,
        MethodNotAllowed,
        RequestTimedOut,
        PayloadTooLarge,
    )
}


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    #: The place in the request.
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """OpenAI's error."""

    error: ErrorDetail


#: What every route may answer besides its own, for the description of the interface.
ERROR_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    status: {"model": ErrorBody, "description": description}
    for status, description in (("4XX", "The request is wrong."), ("5XX", "Try again, or tell the operator."))
}


def error_response(error: LorawayError) -> Response:
    """The answer for an error: status, body and the headers that go with it."""
    headers = {}
    if error.retry_after_seconds is not None:
        headers["retry-after"] = str(error.retry_after_seconds)
    if isinstance(error, AuthenticationFailed):
        headers["www-authenticate"] = "Bearer"
    body = orjson.dumps(error_body(error))
    return Response(body, error.status, headers, media_type="application/json")


def install_error_handlers(app: FastAPI) -> None:
    """Have the app turn each exception a route or the framework raises into OpenAI's shape."""
    app.add_exception_handler(LorawayError, _on_ours)
    app.add_exception_handler(RequestValidationError, _on_validation)
    app.add_exception_handler(HTTPException, _on_http)
    for kind in (OperationalError, InterfaceError, TimeoutError):
        app.add_exception_handler(kind, _on_database)


def _on_ours(_request: Request, error: Exception) -> Response:
    assert isinstance(error, LorawayError)
    return error_response(error)


def _on_http(request: Request, error: Exception) -> Response:
    """No such path, a method the path does not take, a broken multipart body, a limit exceeded."""
    assert isinstance(error, HTTPException)
    kind = _BY_STATUS.get(error.status_code, InvalidRequest)
    is_bare = error.detail == HTTPStatus(error.status_code).phrase
    message = error.detail if not is_bare else None
    if kind is NotFound and is_bare:
        message = f"There is nothing at {request.method} {request.url.path[:200]}."
    elif kind is MethodNotAllowed and is_bare:
        message = f"{request.url.path[:200]} does not take {request.method}."
    response = error_response(kind(message))
    for name, value in (error.headers or {}).items():
        response.headers[name] = value
    return response


def _on_validation(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return error_response(invalid_request(error.errors()))


def _on_database(_request: Request, error: Exception) -> Response:
    # Its message would hold the statement and its parameters, which are what users wrote.
    _LOG.error("database: %s", type(getattr(error, "orig", None) or error).__name__)
    message = "The database does not answer right now; try again."
    return error_response(Unavailable(message, retry_after_seconds=_RETRY_SECONDS))


def invalid_request(problems: Sequence[Mapping[str, Any]]) -> InvalidRequest:
    """The error for what pydantic found wrong: each place, as the client wrote it, and why."""
    first = problems[0]
    if first["type"] == "json_invalid":
        return InvalidJSON(f"The request body is not valid JSON: {first['ctx']['error']}.")
    if first["loc"] == ("body",) and isinstance(first.get("input"), bytes):
        return InvalidRequest("Send the body as JSON, with the header 'content-type: application/json'.")
    described = [f"{_place(problem)}: {_reason(problem)}" for problem in problems[:5]]
    return InvalidRequest("; ".join(described) + ".", param=_place(first))


def _place(problem: Mapping[str, Any]) -> str:
    # The location begins with query, path or body; then come the steps down to the value.
    steps = [str(step)[:64] for step in problem["loc"][1:]]
    return ".".join(steps) or str(problem["loc"][0])


def _reason(problem: Mapping[str, Any]) -> str:
    reasons = {"missing": "this field is required", "extra_forbidden": "unknown field"}
    message = str(problem["msg"]).removeprefix("Value error, ")
    return reasons.get(problem["type"], message[:1].lower() + message[1:]).rstrip(".")
