"""What an engine's error means for the client: pass it on, try another replica, or call it ours."""

from __future__ import annotations

from typing import Any, Final

import orjson

from gateway.routing.snapshot import Target
from loraway.errors import AdapterNotLoaded, LorawayError, Unavailable, UpstreamFailed

#: What another replica may do better.
_RETRYABLE: Final = frozenset({502, 503})
#: Told to clients that an engine's restart or load keeps waiting.
RETRY_AFTER_SECONDS: Final = 2
_MAX_MESSAGE: Final = 2000


class AttemptFailed(Exception):
    """A replica did not answer the request; nothing of an answer has gone to the client."""

    def __init__(self, error: LorawayError, *, may_retry: bool, is_lost: bool = False) -> None:
        super().__init__(str(error))
        self.error = error
        #: Whether another replica may be asked.
        self.may_retry = may_retry
        #: Whether the connection broke before the first byte, as one does that the engine had closed.
        self.is_lost = is_lost


def failed_attempt(status: int, body: bytes, target: Target) -> AttemptFailed | None:
    """The failure that an engine's error stands for, or None where the client must see it as it is."""
    if status in _RETRYABLE:
        message = f"The engine cannot answer right now: {_message(body) or status}"
        return AttemptFailed(Unavailable(message, retry_after_seconds=RETRY_AFTER_SECONDS), may_retry=True)
    if status in (401, 403):
        return AttemptFailed(UpstreamFailed("The engine refused the gateway's key."), may_retry=False)
    if target.version_id is not None and _says_not_loaded(status, body):
        message = f"{target.name} is not loaded on this replica; try again."
        return AttemptFailed(
            AdapterNotLoaded(message, retry_after_seconds=RETRY_AFTER_SECONDS), may_retry=True
        )
    return None


def openai_error(status: int, body: bytes) -> bytes:
    """The engine's error body in OpenAI's shape; as it is where it has that shape (vLLM)."""
    fields = _fields(body)
    error = fields.get("error")
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        return body
    kind = "invalid_request_error" if status < 500 else "server_error"
    code = fields.get("code")
    shaped = {
        "message": _message(body) or f"The engine answered {status}.",
        "type": fields.get("type") if isinstance(fields.get("type"), str) else kind,
        "param": fields.get("param") if isinstance(fields.get("param"), str) else None,
        "code": code if isinstance(code, str) else None,
    }
    return orjson.dumps({"error": shaped})


def _says_not_loaded(status: int, body: bytes) -> bool:
    """vLLM: 404 about `model`; SGLang: 400 about an adapter that it does not know or cannot load again."""
    if status == 404:
        return b'"model"' in body or b"does not exist" in body
    return status == 400 and (b"LoRA adapter" in body or b"implicitly load" in body)


def _message(body: bytes) -> str:
    fields = _fields(body)
    error = fields.get("error")
    message = error.get("message") if isinstance(error, dict) else error
    message = message or fields.get("message") or fields.get("detail")
    if not message and body:
        message = body.decode(errors="replace")
    return (message if isinstance(message, str) else orjson.dumps(message).decode())[:_MAX_MESSAGE]


def _fields(body: bytes) -> dict[str, Any]:
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return fields if isinstance(fields, dict) else {}
