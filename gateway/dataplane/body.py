"""What a data-plane request asks for: its JSON body checked, and written again for the engine."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

import orjson

from gateway.dataplane.request import CHAT_PATH
from gateway.traffic_row import checked_metadata
from loraway.errors import InvalidJSON, InvalidRequest

_KEY: Final = b'"model"'
_MODEL: Final = re.compile(rb'"model"\s*:\s*("[^"\\]*")')
#: The letters of `model` may be written as escapes of this form; then the text cannot be spliced.
_ESCAPED_LETTER: Final = b"\\u006"

#: Fields by which an engine would be steered past `model` or into other engines: SGLang takes an adapter from
#: `lora_path`, both take addresses and ids of transfers between engines.
_NOT_FOR_CLIENTS: Final = frozenset(
    {
        "lora_path",
        "lora_id",
        "lora_request",
        "rid",
        "request_id",
        "bootstrap_host",
        "bootstrap_port",
        "bootstrap_room",
        "kv_transfer_params",
        "data_parallel_rank",
        "routed_dp_rank",
        "disagg_prefill_dp_rank",
    }
)


@dataclass(slots=True)
class Asked:
    """The fields that loraway itself reads; `fields` is the whole body."""

    model: str
    #: `store` as sent; None where it was not.
    stores: bool | None
    fields: dict[str, Any]
    body: bytes


def parse_body(path: bytes, body: bytes) -> Asked:
    """Check what must hold for any engine; the engine checks the rest.

    Raises `InvalidJSON` with the place of the fault, `InvalidRequest` with the name of the field.
    """
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidJSON(
            f"The request body is not valid JSON: {error.msg} (line {error.lineno}, column {error.colno})."
        ) from None
    if not isinstance(fields, dict):
        raise InvalidRequest("The request body must be a JSON object.")
    model = fields.get("model")
    if not isinstance(model, str) or not model:
        what = "is missing" if model is None else "must be a string that is not empty"
        raise InvalidRequest(f"'model' {what}: name a base model, an alias or a version.", param="model")
    if not _NOT_FOR_CLIENTS.isdisjoint(fields):
        name = min(_NOT_FOR_CLIENTS.intersection(fields))
        raise InvalidRequest(f"'{name}' is not taken here; adapters are chosen by 'model'.", param=name)
    if path != CHAT_PATH:
        return Asked(model, False, fields, body)
    if not isinstance(fields.get("messages"), list):
        what = "must be a list of messages" if "messages" in fields else "is missing"
        raise InvalidRequest(f"'messages' {what}.", param="messages")
    if "metadata" in fields:
        checked_metadata(fields["metadata"])
    stores = fields.get("store")
    if stores is not None and not isinstance(stores, bool):
        raise InvalidRequest("'store' must be true or false.", param="store")
    return Asked(model, stores, fields, body)


def with_model(asked: Asked, quoted_model: bytes) -> bytes:
    """The body with another model, given as JSON text.

    Spliced where the key can only be the one that was parsed, else written anew: a second `"model"`, or one
    spelled with escapes, must never reach the engine as another model than the one that was resolved.
    """
    body = asked.body
    place = body.find(_KEY)
    if place >= 0 and body.find(_KEY, place + 7) < 0 and _ESCAPED_LETTER not in body:
        match = _MODEL.match(body, place)
        if match is not None:
            return body[: match.start(1)] + quoted_model + body[match.end(1) :]
    return orjson.dumps({**asked.fields, "model": orjson.loads(quoted_model)})
