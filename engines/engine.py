"""What an inference engine is to loraway: a Protocol and the nouns it speaks in.

An `Engine` is a driver: it knows one dialect (`vllm.py`, `sglang.py`, `openai.py`) and talks to one replica
over HTTP. It holds no state of the fleet; the controller owns that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

EngineKind = Literal["vllm", "sglang", "openai"]


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """How busy a replica is, as it says itself."""

    running: int
    waiting: int
    #: Used part of the KV cache, 0 to 1.
    kv_cache_usage: float
    #: Adapters that requests run on now, by engine name; empty where the engine does not say (SGLang).
    running_adapters: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message of a chat."""

    role: str
    content: str

    def as_json(self) -> dict[str, str]:
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True, slots=True)
class Generation:
    """A greedy answer and the logprob of each of its tokens, in order."""

    text: str
    logprobs: tuple[float, ...]
    #: The `model` that the engine says has answered.
    model: str
    #: The text of each token, as long as `logprobs`.
    tokens: tuple[str, ...] = ()


class Engine(Protocol):
    """Drives one replica.

    Every method raises `EngineUnreachable` when the replica cannot be reached or does not answer in time.
    """

    kind: EngineKind
    url: str

    async def is_healthy(self) -> bool:
        """Whether the replica says that it can serve; cheap."""
        ...

    async def read_load(self) -> EngineLoad:
        """The replica's own load figures."""
        ...

    async def loaded_adapters(self) -> dict[str, str]:
        """Engine name and path of each adapter that is loaded now."""
        ...

    async def load_adapter(self, engine_name: str, path: str) -> None:
        """Load an adapter; that it is loaded already, from this path, is success.

        Raises `EngineRejected` with the engine's reason (rank, modules, missing or broken files).
        """
        ...

    async def unload_adapter(self, engine_name: str) -> None:
        """Unload an adapter; that it is not loaded is success. May wait for its running requests (SGLang)."""
        ...

    async def generate(
        self, engine_name: str | None, messages: Sequence[ChatMessage], max_tokens: int
    ) -> Generation:
        """A greedy chat answer with logprobs from the adapter, or from the base model for None."""
        ...

    async def close(self) -> None:
        """Let go of the connections."""
        ...


def wire_model(kind: EngineKind, base_model: str, engine_name: str | None) -> str:
    """What goes into `model` of a request to a replica of this kind.

    vLLM knows an adapter by its bare name. SGLang answers a bare unknown name with the base model and needs
    `base:adapter`. A remote OpenAI-compatible server has no adapters of ours.
    """
    if engine_name is None:
        return base_model
    return f"{base_model}:{engine_name}" if kind == "sglang" else engine_name
