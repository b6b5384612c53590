"""One example on its way into a dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from finetune.datasets.selection import Fingerprint, fingerprint

_MESSAGE_FIELDS = ("role", "content", "name", "tool_calls", "tool_call_id", "function_call", "weight")


@dataclass(frozen=True, slots=True)
class Example:
    """A chat to learn from, as the line that will be in the dataset."""

    line: bytes
    fingerprint: Fingerprint
    #: Where it comes from, when that is logged traffic.
    completion_id: str | None = None


def make_example(
    messages: Sequence[Mapping[str, Any]],
    tools: object = None,
    *,
    is_corrected: bool = False,
    completion_id: str | None = None,
) -> Example:
    """The example of these messages; fields that no chat template reads are dropped."""
    plain = [
        {name: message[name] for name in _MESSAGE_FIELDS if message.get(name) is not None}
        for message in messages
    ]
    row: dict[str, Any] = {"messages": plain}
    if tools:
        row["tools"] = tools
    return Example(orjson.dumps(row), fingerprint(row, is_corrected=is_corrected), completion_id)
