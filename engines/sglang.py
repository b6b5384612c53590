"""SGLang's dialect: adapters are asked for as `base:adapter`, never by bare name (measured on 0.5.23)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engines.connection import (
    CHANGE_SECONDS,
    EngineConnection,
    chat_greedily,
    list_models,
    reason_of,
    understood,
)
from engines.engine import ChatMessage, EngineKind, EngineLoad, Generation, wire_model
from loraway.errors import EngineMismatch, EngineRejected, EngineUnreachable, UpstreamFailed

#: An unload waits for the adapter's running requests, so for as long as a request may take.
_UNLOAD_SECONDS = 600.0


class SglangEngine:
    """Drives one SGLang server started with `--enable-lora`.

    A bare unknown name is answered by the base model with 200, and so is an adapter's own id: `wire_model`
    puts the base's name and a colon before it.
    """

    kind: EngineKind = "sglang"

    def __init__(self, url: str, api_key: str | None, base_model: str) -> None:
        self._connection = EngineConnection(url, api_key)
        self.url = self._connection.url
        self.base_model = base_model
        self._has_generated = False

    async def is_healthy(self) -> bool:
        """`/health` (a generated token, at least 1 s) until it has once said yes; then a cheap call.

        When the scheduler dies the server refuses connections at once, so any answer means that it lives.
        """
        path = "/v1/loads?include=core" if self._has_generated else "/health"
        try:
            response = await self._connection.get(path)
        except EngineUnreachable:
            self._has_generated = False
            raise
        self._has_generated = response.status_code == 200
        return self._has_generated

    async def read_load(self) -> EngineLoad:
        response = await self._connection.get("/v1/loads?include=core")
        if response.status_code != 200:
            raise UpstreamFailed(f"The engine at {self.url} answered {response.status_code} to /v1/loads.")
        with understood(self.url, "/v1/loads"):
            return parse_load(response.json())

    async def loaded_adapters(self) -> dict[str, str]:
        return await list_models(self._connection, self.base_model)

    async def load_adapter(self, engine_name: str, path: str) -> None:
        body = {"lora_name": engine_name, "lora_path": path}
        response = await self._connection.post("/load_lora_adapter", body, CHANGE_SECONDS)
        with understood(self.url, "a load"):
            if response.status_code == 200 and response.json()["success"]:
                return
        reason = reason_of(response)
        if "already loaded" in reason and (await self.loaded_adapters()).get(engine_name) == path:
            return
        shown = reason.replace(path, f"the folder of {engine_name}")
        raise EngineRejected(f"The engine at {self.url} refused to load {engine_name}: {shown}")

    async def unload_adapter(self, engine_name: str) -> None:
        body = {"lora_name": engine_name}
        response = await self._connection.post("/unload_lora_adapter", body, _UNLOAD_SECONDS)
        if response.status_code == 200 or engine_name not in await self.loaded_adapters():
            return
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


def parse_load(answer: dict[str, Any]) -> EngineLoad:
    """The load in `/v1/loads`.

    Raises `EngineMismatch` for a server of several schedulers: it spreads requests over them as it likes.
    """
    loads = answer["loads"]
    if len(loads) > 1:
        raise EngineMismatch(f"It runs {len(loads)} engines behind one address; start each by itself.")
    if not loads:
        return EngineLoad(running=0, waiting=0, kv_cache_usage=0.0)  # its first figures are not written yet
    return EngineLoad(
        running=int(loads[0]["num_running_reqs"]),
        waiting=int(loads[0]["num_waiting_reqs"]),
        kv_cache_usage=float(loads[0]["token_usage"]),
    )
