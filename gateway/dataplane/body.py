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
#: `model` is looked for so far from either end of the body: scanning a long prompt would cost more than
#: everything else that is done with it.
_NEAR: Final = 1024

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


def with_model(asked: Asked, quoted_model: bytes, member: bytes = b"") -> bytes:
    """The body with another model, given as JSON text: spliced where its place is certain, else anew.

    `member` is one more member of the object, as JSON text, that the client cannot have sent.
    """
    body = asked.body
    if member:
        quoted_model = b"%b,%b" % (quoted_model, member)
    place = _place_of_model(body)
    if place >= 0:
        match = _MODEL.match(body, place)
        if match is not None and match[1] == b'"%b"' % asked.model.encode():
            return b"%b%b%b" % (body[: match.start(1)], quoted_model, body[match.end(1) :])
    others = {name: value for name, value in asked.fields.items() if name != "model"}
    start = b'{"model":%b' % quoted_model
    return b"%b,%b" % (start, orjson.dumps(others)[1:]) if others else start + b"}"


def _place_of_model(body: bytes) -> int:
    """Where the body's own `"model"` is, near its beginning or its end; -1 where that is not certain.

    A `"model"` is the body's own, not one of an object inside it, if what is before it is the beginning of an
    object whose every inner object is closed, or what is after it is the end of one. A body that gives the
    key twice gains nothing: both sides take the last, and no name that resolves is a name that engines know,
    so what slips through is refused by the engine or seen in its answer.
    """
    place = body.find(_KEY, 0, _NEAR)
    if place == 1 or (place > 1 and _is_object(b'%b"":0}' % body[:place])):
        return place
    place = body.rfind(_KEY, max(0, len(body) - _NEAR))
    return place if place >= 0 and _is_object(b"{" + body[place:]) else -1


def _is_object(text: bytes) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True
