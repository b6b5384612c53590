"""HTTP to one replica: its key, a deadline for every call, and one way of failing.

Shared by the drivers; knows no dialect.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import httpx

from engines.engine import ChatMessage, Generation
from loraway.errors import EngineMismatch, EngineSilent, EngineUnreachable, UpstreamFailed

#: Seconds for each kind of call. An engine that computes a long prefill on a busy CPU is slow to answer
#: anything, so these are generous; a dead one is noticed by its refused connections, at once.
HEALTH_SECONDS = 5.0
CHANGE_SECONDS = 60.0
GENERATE_SECONDS = 60.0


class EngineBrokeOff(EngineUnreachable):
    """The connection to the engine ended without an answer."""


class EngineConnection:
    """A keep-alive client for one replica. Raises `EngineUnreachable`, or `EngineSilent` past a deadline."""

    def __init__(self, url: str, api_key: str | None) -> None:
        self.url = url.rstrip("/")
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = httpx.AsyncClient(base_url=self.url, headers=headers, trust_env=False)

    async def get(self, path: str, timeout_seconds: float = HEALTH_SECONDS) -> httpx.Response:
        """Tried twice: a server may close a kept-alive connection just as we use it, or have restarted."""
        try:
            return await self._send("GET", path, None, timeout_seconds)
        except EngineBrokeOff:
            return await self._send("GET", path, None, timeout_seconds)

    async def post(self, path: str, body: Mapping[str, Any], timeout_seconds: float) -> httpx.Response:
        return await self._send("POST", path, body, timeout_seconds)

    async def close(self) -> None:
        await self._client.aclose()

    async def _send(
        self, method: str, path: str, body: Mapping[str, Any] | None, timeout_seconds: float
    ) -> httpx.Response:
        try:
            return await self._client.request(method, path, json=body, timeout=timeout_seconds)
        except httpx.TimeoutException as error:
            raise EngineSilent(
                f"The engine at {self.url} did not answer {path} in {timeout_seconds:g} s."
            ) from error
        except httpx.ConnectError as error:
            raise EngineUnreachable(f"The engine at {self.url} cannot be reached: {error}") from error
        except httpx.TransportError as error:
            raise EngineBrokeOff(f"The engine at {self.url} broke off its answer to {path}.") from error


def reason_of(response: httpx.Response) -> str:
    """What an engine says about its refusal, whichever of the known shapes it says it in."""
    try:
        body = response.json()
    except ValueError:
        return response.text[:500]
    if not isinstance(body, dict):
        return response.text[:500]
    error = body.get("error")
    if isinstance(error, dict):
        error = error.get("message")
    return str(error or body.get("error_message") or body.get("message") or body.get("detail") or body)[:500]


async def list_models(connection: EngineConnection, base_model: str) -> dict[str, str]:
    """Name and path of each adapter in `/v1/models`, where adapters are those that have a parent.

    Raises `EngineMismatch` when the engine does not serve this base model.
    """
    response = await connection.get("/v1/models")
    if response.status_code != 200:
        raise UpstreamFailed(
            f"The engine at {connection.url} answered {response.status_code} to /v1/models: "
            f"{reason_of(response)}"
        )
    with understood(connection.url, "/v1/models"):
        cards = response.json()["data"]
        adapters = {str(card["id"]): str(card["root"]) for card in cards if card.get("parent")}
        bases = [str(card["id"]) for card in cards if not card.get("parent")]
    if base_model not in bases:
        raise EngineMismatch(f"The engine at {connection.url} serves {', '.join(bases)}, not {base_model}.")
    return adapters


async def chat_greedily(
    connection: EngineConnection, model: str, messages: Sequence[ChatMessage], max_tokens: int
) -> Generation:
    """A greedy chat completion with the logprob of each of its tokens.

    Raises `UpstreamFailed` with the engine's reason when it does not answer 200.
    """
    body = {
        "model": model,
        "messages": [message.as_json() for message in messages],
        "max_tokens": max_tokens,
        "temperature": 0,
        "logprobs": True,
    }
    response = await connection.post("/v1/chat/completions", body, GENERATE_SECONDS)
    if response.status_code != 200:
        raise UpstreamFailed(
            f"The engine at {connection.url} answered {response.status_code} to a generation by {model}: "
            f"{reason_of(response)}"
        )
    with understood(connection.url, "a generation"):
        answer = response.json()
        choice = answer["choices"][0]
        tokens = (choice.get("logprobs") or {}).get("content") or []
        return Generation(
            text=choice["message"]["content"] or "",
            logprobs=tuple(float(token["logprob"]) for token in tokens),
            model=str(answer.get("model", "")),
            tokens=tuple(str(token["token"]) for token in tokens),
        )


@contextmanager
def understood(url: str, what: str) -> Iterator[None]:
    """Turn whatever goes wrong while an answer is read into `UpstreamFailed`: it is not what we know."""
    try:
        yield
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise UpstreamFailed(
            f"The engine at {url} gave an answer to {what} that cannot be understood."
        ) from error


def parse_prometheus(text: str) -> list[tuple[str, dict[str, str], float]]:
    """The samples of a Prometheus text: name, labels, value."""
    samples = []
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        series, _, value = line.rpartition(" ")
        name, brace, labels = series.partition("{")
        samples.append((name, _labels(labels.rstrip("}")) if brace else {}, float(value)))
    return samples


def _labels(text: str) -> dict[str, str]:
    labels: dict[str, str] = {}
    for part in text.split('",'):
        key, _, value = part.partition('="')
        if key:
            labels[key.strip()] = value.rstrip('"')
    return labels
