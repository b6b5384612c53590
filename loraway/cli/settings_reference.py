"""docs/settings.md, written from the settings' own descriptions (`loraway config --reference`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from loraway.settings import Settings

_HEAD = """# Settings

Read from `loraway.toml` in the working folder, or the file that `LORAWAY_CONFIG` names. The environment wins
(`LORAWAY_GATEWAY__PORT` sets `gateway.port`). `loraway config` prints the effective tree with secrets hidden.
This page is made by `loraway config --reference`.

| setting | type | default | what it is for |
|---|---|---|---|
"""


def settings_reference() -> str:
    """The page, one row a setting, in the order of their declaration."""
    return _HEAD + "".join(_rows(Settings, ""))


def _rows(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        nested = field.annotation
        if isinstance(nested, type) and issubclass(nested, BaseModel):
            yield from _rows(nested, f"{prefix}{name}.")
        else:
            default = field.get_default()
            shown = "" if default is None else f"`{default}`"
            yield f"| `{prefix}{name}` | {_type_name(field)} | {shown} | {field.description} |\n"


def _type_name(field: FieldInfo) -> str:
    annotation: Any = field.annotation
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    for noise in ("typing.", "pathlib._local.", "pathlib.", "pydantic.types."):
        text = text.replace(noise, "")
    return text.replace("|", "or")
