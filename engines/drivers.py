"""Which driver speaks to which kind of engine. A new engine is a file and a line here."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from engines.engine import Engine, EngineKind
from engines.openai import OpenAIEngine
from engines.sglang import SglangEngine
from engines.vllm import VllmEngine
from loraway.errors import InvalidRequest

_DRIVERS: dict[EngineKind, Callable[[str, str | None, str], Engine]] = {
    "vllm": VllmEngine,
    "sglang": SglangEngine,
    "openai": OpenAIEngine,
}


def driver_for(kind: EngineKind, url: str, api_key: str | None, base_model: str) -> Engine:
    """A driver for the replica at this URL; `base_model` is the name that the engine serves it under."""
    return _DRIVERS[kind](url, api_key, base_model)


def parse_engine_url(text: str) -> tuple[EngineKind, str]:
    """Kind and URL of a setting such as `sglang=http://127.0.0.1:9001`; without a kind it is vLLM."""
    head, separator, rest = text.partition("=")
    has_kind = separator == "=" and head in _DRIVERS
    url = (rest if has_kind else text).rstrip("/")
    if not url.startswith(("http://", "https://")):
        raise InvalidRequest(f"'{text}' is no engine: write KIND=URL with one of {', '.join(_DRIVERS)}.")
    return (cast(EngineKind, head) if has_kind else "vllm"), url
