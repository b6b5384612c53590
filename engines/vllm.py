"""vLLM's dialect: adapters are models of their own, by bare name (measured on 0.32)."""

from __future__ import annotations

from collections.abc import Sequence

from engines.connection import (
    CHANGE_SECONDS,
    EngineConnection,
    chat_greedily,
    list_models,
    parse_prometheus,
    reason_of,
    understood,
)
from engines.engine import ChatMessage, EngineKind, EngineLoad, Generation, wire_model
from loraway.errors import EngineMismatch, EngineRejected, UpstreamFailed

_REQUESTS = "vllm:num_requests_"
_CACHE = "vllm:kv_cache_usage_perc"
_ADAPTERS = "vllm:lora_requests_info"


class VllmEngine:
    """Drives one vLLM server that was started with runtime adapter updates allowed."""

    kind: EngineKind = "vllm"

    def __init__(self, url: str, api_key: str | None, base_model: str) -> None:
        self._connection = EngineConnection(url, api_key)
        self.url = self._connection.url
        self.base_model = base_model

    async def is_healthy(self) -> bool:
        return (await self._connection.get("/health")).status_code == 200

    async def read_load(self) -> EngineLoad:
        response = await self._connection.get("/metrics")
        if response.status_code != 200:
            raise UpstreamFailed(f"The engine at {self.url} answered {response.status_code} to /metrics.")
        with understood(self.url, "/metrics"):
            return parse_load(response.text)

    async def loaded_adapters(self) -> dict[str, str]:
        return await list_models(self._connection, self.base_model)

    async def load_adapter(self, engine_name: str, path: str) -> None:
        body = {"lora_name": engine_name, "lora_path": path}
        response = await self._connection.post("/v1/load_lora_adapter", body, CHANGE_SECONDS)
        if response.status_code == 200:
            return
        reason = reason_of(response)
        # The same answer comes for another path; only this path is success.
        if "has already been loaded" in reason and (await self.loaded_adapters()).get(engine_name) == path:
            return
        # A rank above the engine's limit is a 500 here, so the status says nothing.
        shown = reason.replace(path, f"the folder of {engine_name}")
        raise EngineRejected(f"The engine at {self.url} refused to load {engine_name}: {shown}")

    async def unload_adapter(self, engine_name: str) -> None:
        body = {"lora_name": engine_name}
        response = await self._connection.post("/v1/unload_lora_adapter", body, CHANGE_SECONDS)
        if response.status_code not in (200, 404):
            raise EngineRejected(
                f"The engine at {self.url} refused to unload {engine_name}: {reason_of(response)}"
            )

    async def generate(
        self, engine_name: str | None, messages: Sequence[ChatMessage], max_tokens: int
    ) -> Generation:
        model = wire_model(self.kind, self.base_model, engine_name)
        return await chat_greedily(self._connection, model, messages, max_tokens)

    async def close(self) -> None:
        await self._connection.close()


def parse_load(metrics: str) -> EngineLoad:
    """The load in vLLM's `/metrics`.

    `lora_requests_info` has the adapters as labels and the time as its value; old label sets stay, so the
    newest one is what holds. Raises `EngineMismatch` for a server of several engine cores: it spreads loads
    and requests over them as it likes.
    """
    running = waiting = cache = newest = 0.0
    cores: set[str] = set()
    adapters: frozenset[str] = frozenset()
    for name, labels, value in parse_prometheus(metrics):
        if name == _REQUESTS + "running":
            running += value
            cores.add(labels.get("engine", ""))
        elif name == _REQUESTS + "waiting":
            waiting += value
        elif name == _CACHE:
            cache = max(cache, value)
        elif name == _ADAPTERS and value > newest:
            newest = value
            adapters = frozenset(filter(None, labels.get("running_lora_adapters", "").split(",")))
    if len(cores) > 1:
        raise EngineMismatch(f"It runs {len(cores)} engines behind one address; start each by itself.")
    return EngineLoad(int(running), int(waiting), cache, adapters if running else frozenset())
