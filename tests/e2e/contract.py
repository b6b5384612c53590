"""Makes two engines' answers comparable: what must be equal stays, what may differ becomes its type."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import httpx

from engines.connection import parse_prometheus
from tests.e2e.contract_rows import Row

#: Values that must be equal; of all others only the type.
_EXACT = frozenset(
    (
        *("object", "role", "finish_reason", "stop_reason", "matched_stop", "model", "owned_by", "parent"),
        *(
            "type",
            "code",
            "param",
            "index",
            "success",
            "detail",
            "reasoning_content",
            "weight_version",
            "rid",
        ),
    )
)
#: A number, null or absent, as the prefix cache has it.
_CACHE_DEPENDENT = frozenset({"cached_tokens", "created_cache_tokens"})
#: Series that a fleet reads; an engine has many more.
_SERIES = {
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:num_requests_waiting_by_reason",
    "vllm:kv_cache_usage_perc",
    "sglang:num_running_reqs",
    "sglang:num_queue_reqs",
    "sglang:token_usage",
    "sglang:cache_hit_rate",
    "sglang:lora_pool_slots_used",
    "sglang:lora_pool_slots_total",
}


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer in the form in which two of them are compared."""

    status: int
    content_type: str | None
    allow: str | None
    body: Any


class EngineUnderTest:
    """One engine, simulated or real, brought into a row's state before its call."""

    def __init__(self, kind: str, url: str, api_key: str, adapters_folder: str) -> None:
        self.kind = kind
        self.folder = adapters_folder
        self._prefix = "/v1" if kind == "vllm" else ""
        self.client = httpx.Client(base_url=url, timeout=120, headers={"authorization": f"Bearer {api_key}"})

    def answer(self, row: Row) -> Answered:
        """Load what the row needs, make its call, take everything out again."""
        for name in row.needs:
            response = self.change("load", {"lora_name": name, "lora_path": f"{self.folder}/{name}"})
            assert response.status_code == 200, response.text
        try:
            return comparable(row, self._call(row), self.folder)
        finally:
            for name in (*row.needs, *row.leaves):
                self.change("unload", {"lora_name": name})

    def loaded(self) -> list[str]:
        """The adapters that it lists."""
        cards = self.client.get("/v1/models").json()["data"]
        return [card["id"] for card in cards if card["parent"]]

    def empty(self) -> None:
        """Unload what other tests have left."""
        for name in self.loaded():
            self.change("unload", {"lora_name": name})

    def change(self, what: str, body: dict[str, str]) -> httpx.Response:
        return self.client.post(f"{self._prefix}/{what}_lora_adapter", json=body)

    def _call(self, row: Row) -> httpx.Response:
        headers = dict(row.headers)
        if row.key == "no":
            headers["authorization"] = "Bearer not-the-key"
        content = row.body
        if row.body is not None and not isinstance(row.body, bytes):
            content = json.dumps(row.body).replace("{A}", self.folder).encode()
        if content is not None:
            headers.setdefault("content-type", "application/json")
        return self.client.request(row.method, row.path, content=content, headers=headers)


def comparable(row: Row, response: httpx.Response, folder: str) -> Answered:
    content_type = response.headers.get("content-type")
    body: Any
    if row.path == "/metrics":
        samples = parse_prometheus(response.text)
        body = {name: sorted(labels) for name, labels, _ in samples if name in _SERIES}
    elif content_type is not None and content_type.startswith("text/event-stream"):
        body = _events(response.text, folder)
    elif content_type == "application/json":
        body = shape(response.json(), folder)
        if row.gives_id:
            body["id"] = "given" in response.json()["id"]
    else:
        body = response.text
    return Answered(response.status_code, content_type, response.headers.get("allow"), body)


def shape(value: Any, folder: str, name: str = "") -> Any:
    """Keys, types, and the values that must be equal."""
    if isinstance(value, dict):
        if name == "top_logprobs" and "token" not in value:
            return {"any token": _unique(shape(inner, folder) for inner in value.values())}
        return {key: shape(inner, folder, key) for key, inner in value.items() if key not in _CACHE_DEPENDENT}
    if isinstance(value, list):
        return _unique(shape(item, folder, name) for item in value)
    if name in ("message", "error_message", "error") and isinstance(value, str):
        # Both engines print their own places and inputs below the first line.
        return re.sub(
            r"odict_keys\(.*\)|dict_keys\(.*\)", "KEYS", value.split("\n")[0].replace(folder, "{A}")
        )
    if value is None or name in _EXACT:
        return value
    return "number" if isinstance(value, int | float) else type(value).__name__


def _events(text: str, folder: str) -> list[Any]:
    """The shapes of a stream's events; equal neighbours are one, for an event may hold several tokens."""
    shapes: list[Any] = []
    for event in text.strip().split("\n\n"):
        payload = event.removeprefix("data: ")
        form = payload if payload == "[DONE]" else shape(json.loads(payload), folder)
        if not shapes or shapes[-1] != form:
            shapes.append(form)
    return shapes


def _unique(shapes: Iterable[Any]) -> list[Any]:
    seen: list[Any] = []
    for form in shapes:
        if form not in seen:
            seen.append(form)
    return seen


def differences(real: Any, simulated: Any, at: str = "") -> list[str]:
    """Where two answers are not alike, and how."""
    if isinstance(real, Answered) and isinstance(simulated, Answered):
        return [
            *differences(real.status, simulated.status, "status"),
            *differences(real.content_type, simulated.content_type, "content-type"),
            *differences(real.allow, simulated.allow, "allow"),
            *differences(real.body, simulated.body, "body"),
        ]
    if isinstance(real, dict) and isinstance(simulated, dict):
        missing, surplus = real.keys() - simulated.keys(), simulated.keys() - real.keys()
        return [
            *(f"{at}.{key}: only the real one has it" for key in sorted(missing)),
            *(f"{at}.{key}: only the simulated one has it" for key in sorted(surplus)),
            *(line for key in real.keys() & simulated for line in _inside(real, simulated, at, key)),
        ]
    if isinstance(real, list) and isinstance(simulated, list) and len(real) == len(simulated):
        return [line for index in range(len(real)) for line in _inside(real, simulated, at, index)]
    return [] if real == simulated else [f"{at}: real {real!r}, simulated {simulated!r}"]


def _inside(real: Any, simulated: Any, at: str, key: str | int) -> list[str]:
    return differences(real[key], simulated[key], f"{at}.{key}")
