"""Every error a client or an operator can see, in one tree.

    LorawayError                        500 internal_error
    |- InvalidRequest                   400 invalid_request_error
    |  |- InvalidJSON                   400 invalid_json
    |  |- InvalidTrainingFile           400 invalid_training_file
    |  `- UnknownHyperparameter         400 unknown_hyperparameter
    |- AuthenticationFailed             401 invalid_api_key
    |- PermissionDenied                 403 permission_denied
    |- NotFound                         404 not_found
    |  `- ModelNotFound                 404 model_not_found
    |- MethodNotAllowed                 405 method_not_allowed
    |- RequestTimedOut                  408 request_timeout
    |- Conflict                         409 conflict
    |- PayloadTooLarge                  413 request_too_large
    |- RateLimited                      429 rate_limit_exceeded
    |- UpstreamFailed                   502 upstream_error
    |  |- EngineRejected                502 engine_rejected
    |  `- EngineMismatch                502 engine_mismatch
    |- Unavailable                      503 service_unavailable
    |  |- NoReplicaReady                503 no_replica_ready
    |  |- AdapterNotLoaded              503 adapter_not_loaded
    |  `- EngineUnreachable             503 engine_unreachable
    |     `- EngineSilent               503 engine_unreachable
    `- UpstreamTimedOut                 504 upstream_timeout

Each class knows its HTTP status and its code in OpenAI's error shape (API reference, "Error codes");
`error_body` is the one place that turns an error into that shape. Messages say what happened, with which
value, and what to do. They never hold a key, a prompt or a path of this machine.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import ClassVar


class LorawayError(Exception):
    """Something went wrong inside loraway."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str] = "internal_error"

    def __init__(
        self,
        message: str | None = None,
        *,
        param: str | None = None,
        retry_after_seconds: int | None = None,
    ) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())
        self.param = param
        self.retry_after_seconds = retry_after_seconds

    @property
    def message(self) -> str:
        return str(self.args[0])


class InvalidRequest(LorawayError):
    """The request is not valid."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_request_error"


class InvalidJSON(InvalidRequest):
    """The request body is not valid JSON."""

    code = "invalid_json"


class InvalidTrainingFile(InvalidRequest):
    """The training file is not valid."""

    code = "invalid_training_file"


class UnknownHyperparameter(InvalidRequest):
    """A hyperparameter is not known."""

    code = "unknown_hyperparameter"


class AuthenticationFailed(LorawayError):
    """Incorrect API key provided. Send it as 'Authorization: Bearer KEY'."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class PermissionDenied(LorawayError):
    """This key may not do that."""

    status = 403
    type = "invalid_request_error"
    code = "permission_denied"


class NotFound(LorawayError):
    """There is no such object in this project."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"


class ModelNotFound(NotFound):
    """The model does not exist or this project has no access to it."""

    code = "model_not_found"

    @classmethod
    def near(cls, model: str, known: Iterable[str]) -> ModelNotFound:
        """The error for an unknown model, listing the names that look most like it."""
        names = sorted(known)
        near = get_close_matches(model, names, n=3, cutoff=0.4) or names[:3]
        hint = f" Did you mean {', '.join(repr(n) for n in near)}?" if near else ""
        return cls(f"The model {model[:128]!r} does not exist in this project.{hint}", param="model")


class MethodNotAllowed(LorawayError):
    """This path does not take that HTTP method."""

    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"


class RequestTimedOut(LorawayError):
    """The request did not arrive in time."""

    status = 408
    type = "invalid_request_error"
    code = "request_timeout"


class Conflict(LorawayError):
    """The object is not in a state that allows this."""

    status = 409
    type = "invalid_request_error"
    code = "conflict"


class PayloadTooLarge(LorawayError):
    """The request body is too large."""

    status = 413
    type = "invalid_request_error"
    code = "request_too_large"


class RateLimited(LorawayError):
    """Too many requests."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class UpstreamFailed(LorawayError):
    """The engine broke off its answer."""

    status = 502
    type = "server_error"
    code = "upstream_error"


class EngineRejected(UpstreamFailed):
    """The engine refused to load the adapter."""

    code = "engine_rejected"


class EngineMismatch(UpstreamFailed):
    """What the engine serves is not what was trained."""

    code = "engine_mismatch"


class Unavailable(LorawayError):
    """The service cannot answer right now."""

    status = 503
    type = "server_error"
    code = "service_unavailable"


class NoReplicaReady(Unavailable):
    """No replica of this model is ready."""

    code = "no_replica_ready"


class AdapterNotLoaded(Unavailable):
    """The adapter is not loaded on any replica yet."""

    code = "adapter_not_loaded"


class EngineUnreachable(Unavailable):
    """The engine cannot be reached."""

    code = "engine_unreachable"


class EngineSilent(EngineUnreachable):
    """The engine was reached but did not answer in time."""


class UpstreamTimedOut(LorawayError):
    """The engine did not answer in time."""

    status = 504
    type = "server_error"
    code = "upstream_timeout"


def error_body(error: LorawayError) -> dict[str, dict[str, str | None]]:
    """The error in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`."""
    return {
        "error": {
            "message": error.message,
            "type": error.type,
            "param": error.param,
            "code": error.code,
        }
    }
