"""What is wrong with a body's form, found in the order in which the engines find it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

_TYPES: dict[str, tuple[type | tuple[type, ...], str, str]] = {
    "string": (str, "string_type", "Input should be a valid string"),
    "list": (list, "list_type", "Input should be a valid list"),
    "number": (
        (int, float),
        "float_parsing",
        "Input should be a valid number, unable to parse string as a number",
    ),
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One validation error, in pydantic's terms."""

    type: str
    loc: tuple[str | int, ...]
    msg: str
    input: Any
    ctx: dict[str, str] | None = None

    def described(self, loc: object, shown: object) -> str:
        """As both engines print it, with the place and the input in the engine's own form."""
        parts: dict[str, object] = {"type": self.type, "loc": loc, "msg": self.msg, "input": shown}
        if self.ctx is not None:
            parts["ctx"] = self.ctx
        return f"  {parts}"


class InvalidBody(Exception):
    """A body whose form is wrong."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.msg)
        self.problem = problem


def read_body(raw: bytes, fields: dict[str, str], required: tuple[str, ...]) -> dict[str, Any]:
    """The body as a dict, its fields of the types named. Raises InvalidBody."""
    try:
        body = json.loads(raw)
    except ValueError as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        position = error.pos if isinstance(error, json.JSONDecodeError) else 0
        raise InvalidBody(
            Problem("json_invalid", ("body", position), "JSON decode error", {}, {"error": reason})
        ) from None
    if not isinstance(body, dict):
        message = "Input should be a valid dictionary or object to extract fields from"
        raise InvalidBody(Problem("model_attributes_type", ("body",), message, body))
    for name in required:
        if name not in body:
            raise InvalidBody(Problem("missing", ("body", name), "Field required", body))
    for name, kind in fields.items():
        accepted, error_type, message = _TYPES[kind]
        if body.get(name) is not None and not isinstance(body[name], accepted):
            raise InvalidBody(Problem(error_type, ("body", name), message, body[name]))
    return body
