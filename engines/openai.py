"""A remote server that speaks OpenAI's API: it serves a base model and takes no adapters of ours."""

from __future__ import annotations

from collections.abc import Sequence

from engines.connection import EngineConnection, chat_greedily, list_models
from engines.engine import ChatMessage, EngineKind, EngineLoad, Generation, wire_model
from loraway.errors import EngineRejected


class OpenAIEngine:
    """Drives a server of which nothing is known but `/v1/models` and `/v1/chat/completions`."""

    kind: EngineKind = "openai"

    def __init__(self, url: str, api_key: str | None, base_model: str) -> None:
        self._connection = EngineConnection(url, api_key)
        self.url = self._connection.url
        self.base_model = base_model

    async def is_healthy(self) -> bool:
        return (await self._connection.get("/v1/models")).status_code == 200

    async def read_load(self) -> EngineLoad:
        """Nothing is known of a remote server's load."""
        return EngineLoad(running=0, waiting=0, kv_cache_usage=0.0)

    async def loaded_adapters(self) -> dict[str, str]:
        """None; asked all the same, to see that the base model is served."""
        await list_models(self._connection, self.base_model)
        return {}

    async def load_adapter(self, engine_name: str, path: str) -> None:
        raise EngineRejected(f"{self.url} is a remote OpenAI server; it cannot load {engine_name}.")

    async def unload_adapter(self, engine_name: str) -> None:
        """Nothing is ever loaded there."""

    async def generate(
        self, engine_name: str | None, messages: Sequence[ChatMessage], max_tokens: int
    ) -> Generation:
        if engine_name is not None:
            raise EngineRejected(f"{self.url} is a remote OpenAI server; it has no adapter {engine_name}.")
        model = wire_model(self.kind, self.base_model, None)
        return await chat_greedily(self._connection, model, messages, max_tokens)

    async def close(self) -> None:
        await self._connection.close()
