"""What a client can ask of an engine and what it must answer: the dialect tables, one row a call.

The simulator and the real engine both get every row (`test_contract.py`). `{A}` in a body stands for the
folder of test adapters; `needs` are loaded before the call and nothing else is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

BASE = "smollm2-135m"
MESSAGES = [{"role": "user", "content": "Say something."}]
PARTIAL = [*MESSAGES, {"role": "assistant", "content": "I am"}]
USAGE = {"include_usage": True}
PLAIN = (("content-type", "text/plain"),)
CUT_JSON = b'{"a'


@dataclass(frozen=True, slots=True)
class Row:
    """One call and its status; everything else of the answer is compared between engine and simulator."""

    what: str
    method: str
    path: str
    status: int
    body: Any = None
    needs: tuple[str, ...] = ()
    key: str = "K"
    headers: tuple[tuple[str, str], ...] = ()
    #: Loaded by the call itself, and to be taken out again.
    leaves: tuple[str, ...] = ()
    #: The call names an id, "given": whether the answer's holds it is compared, too.
    gives_id: bool = False


def post(what: str, path: str, status: int, body: Any, **options: Any) -> Row:
    return Row(what, "POST", path, status, body, **options)


def get(what: str, path: str, status: int, **options: Any) -> Row:
    return Row(what, "GET", path, status, **options)


def chat(
    what: str, status: int, model: str | None = BASE, *, needs: tuple[str, ...] = (), **body: Any
) -> Row:
    whole = {"messages": MESSAGES, "max_tokens": 4, "temperature": 0, **body}
    if model is not None:
        whole["model"] = model
    return post(what, "/v1/chat/completions", status, whole, needs=needs)


def completion(what: str, status: int, model: str = BASE, *, needs: tuple[str, ...] = (), **body: Any) -> Row:
    whole = {"model": model, "prompt": "Hello", "max_tokens": 3, "temperature": 0, **body}
    return post(what, "/v1/completions", status, whole, needs=needs)


def load(name: str, folder: str | None = None) -> dict[str, str]:
    return {"lora_name": name, "lora_path": f"{{A}}/{folder or name}"}


#: The same call and status in both dialects (the bodies are each engine's own).
BOTH = [
    get("health", "/health", 200),
    get("health without the key", "/health", 200, key="no"),
    get("metrics", "/metrics", 200),
    get("metrics without the key", "/metrics", 200, key="no"),
    get("ping", "/ping", 200),
    get("models", "/v1/models", 200),
    get("models with an adapter", "/v1/models", 200, needs=("a1",)),
    get("models without the key", "/v1/models", 401, key="no"),
    chat("chat", 200),
    replace(chat("chat without the key", 401), key="no"),
    chat("chat with logprobs", 200, logprobs=True),
    chat("chat with top logprobs", 200, logprobs=True, top_logprobs=2),
    chat("chat, two choices", 200, n=2, temperature=1),
    chat("chat with token ids", 200, return_token_ids=True),
    chat("chat streamed", 200, stream=True),
    chat("chat streamed with usage", 200, stream=True, stream_options=USAGE),
    chat(
        "chat streamed with usage in each chunk",
        200,
        stream=True,
        stream_options={**USAGE, "continuous_usage_stats": True},
    ),
    chat("chat streamed with logprobs", 200, stream=True, logprobs=True),
    chat("chat without a model is answered by the base", 200, None),
    chat("chat continued", 200, messages=PARTIAL, continue_final_message=True, add_generation_prompt=False),
    chat("chat without messages", 400, messages=[]),
    chat("chat, messages not a list", 400, messages="hi"),
    chat("chat, temperature not a number", 400, temperature="x"),
    chat("chat, negative max_tokens", 400, max_tokens=-1),
    chat("chat, max_tokens past the context", 400, max_tokens=5000),
    post("chat, messages missing", "/v1/chat/completions", 400, {"model": BASE}),
    post("chat, not JSON", "/v1/chat/completions", 400, CUT_JSON),
    post(
        "chat, not sent as JSON",
        "/v1/chat/completions",
        400,
        CUT_JSON,
        headers=(("content-type", "text/plain"),),
    ),
    get("chat by GET", "/v1/chat/completions", 405),
    replace(chat("chat with X-Request-Id", 200), headers=(("x-request-id", "given"),), gives_id=True),
    replace(chat("chat with rid", 200, rid="given"), gives_id=True),
    completion("completion", 200),
    completion("completion with logprobs", 200, logprobs=1),
    completion("completion streamed", 200, stream=True),
    completion("completion streamed with usage", 200, stream=True, stream_options=USAGE),
    post("completion without a prompt", "/v1/completions", 400, {"model": BASE}),
    post("tokenize text", "/tokenize", 200, {"model": BASE, "prompt": "Hello"}),
    post("tokenize a chat", "/tokenize", 200, {"model": BASE, "messages": MESSAGES}),
    post("detokenize", "/detokenize", 200, {"model": BASE, "tokens": [301, 400]}),
    get("unknown path", "/nope", 404),
    post("unknown path by POST", "/v1/nope", 404, {}),
    Row("delete models", "DELETE", "/v1/models", 405),
]

_LOAD, _UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
VLLM = [
    *BOTH,
    post("ping by POST", "/ping", 200, {}),
    get("version", "/version", 200),
    get("no such health check", "/health_generate", 404),
    get("no load figures", "/v1/loads", 404),
    get("no model by name", f"/v1/models/{BASE}", 404),
    post("no embeddings", "/v1/embeddings", 404, {"model": BASE, "input": "x"}),
    post("load", _LOAD, 200, load("a1"), leaves=("a1",)),
    post("load twice", _LOAD, 400, load("a1"), needs=("a1",)),
    post("load again in place", _LOAD, 200, {**load("a1"), "load_inplace": True}, needs=("a1",)),
    post("load, path missing", _LOAD, 404, load("nope")),
    post("load, rank above the limit", _LOAD, 500, load("rank64")),
    post("load, weights broken", _LOAD, 500, load("broken")),
    post("load under the base's name", _LOAD, 400, load(BASE, "a2")),
    post("load without a name", _LOAD, 400, load("", "a2")),
    post("load, field missing", _LOAD, 400, {"lora_name": "x"}),
    post("load, name not a string", _LOAD, 400, {"lora_name": 1, "lora_path": "x"}),
    post("load, a list", _LOAD, 400, [1]),
    post("load, not JSON", _LOAD, 400, CUT_JSON),
    post("load without the key", _LOAD, 401, load("a1"), key="no"),
    get("load by GET", _LOAD, 405),
    post("unload", _UNLOAD, 200, {"lora_name": "a1"}, needs=("a1",)),
    post("unload, unknown", _UNLOAD, 404, {"lora_name": "zz"}),
    post("unload, field missing", _UNLOAD, 400, {}),
    chat("chat with an adapter", 200, "a1", needs=("a1",)),
    chat("chat with an adapter, streamed", 200, "a1", needs=("a1",), stream=True, stream_options=USAGE),
    chat("chat, unknown model", 404, "nope"),
    chat("chat, unknown model, streamed", 404, "nope", stream=True),
    chat("chat, an adapter after a colon", 404, f"{BASE}:a1", needs=("a1",)),
    chat("chat streamed with token ids", 200, stream=True, return_token_ids=True),
    chat("chat continued and begun anew", 400, messages=PARTIAL, continue_final_message=True),
    chat("chat, max_tokens 0", 400, max_tokens=0),
    chat("chat, two greedy choices", 400, n=2),
    completion("completion with an adapter", 200, "a1", needs=("a1",)),
    completion("completion, unknown model", 404, "nope"),
]

SGLANG = [
    *BOTH,
    post("ping by POST", "/ping", 405, {}),
    get("ping without the key", "/ping", 401, key="no"),
    get("no version", "/version", 404),
    get("health by a generation", "/health_generate", 200),
    get("load figures", "/v1/loads", 200),
    get("core load figures", "/v1/loads?include=core", 200),
    get("load figures without the key", "/v1/loads", 401, key="no"),
    get("model by name", f"/v1/models/{BASE}", 200),
    post("no embeddings", "/v1/embeddings", 400, {"model": BASE, "input": "x"}),
    post("load", "/load_lora_adapter", 200, load("a1"), leaves=("a1",)),
    post("load twice", "/load_lora_adapter", 400, load("a1"), needs=("a1",)),
    post("load, path missing", "/load_lora_adapter", 400, load("nope")),
    post("load, rank above the limit", "/load_lora_adapter", 400, load("rank64")),
    post("load, weights broken", "/load_lora_adapter", 400, load("broken")),
    post("load under the base's name is taken", "/load_lora_adapter", 200, load(BASE, "a2"), leaves=(BASE,)),
    post("load without a name is taken", "/load_lora_adapter", 200, load("", "a2"), leaves=("",)),
    post("load, field missing", "/load_lora_adapter", 400, {"lora_name": "x"}),
    post("load, name not a string", "/load_lora_adapter", 400, {"lora_name": 1, "lora_path": "x"}),
    post("load, a list", "/load_lora_adapter", 400, [1]),
    post("load, not JSON", "/load_lora_adapter", 400, CUT_JSON),
    post("load without the key", "/load_lora_adapter", 401, load("a1"), key="no"),
    get("load by GET", "/load_lora_adapter", 405),
    post("unload", "/unload_lora_adapter", 200, {"lora_name": "a1"}, needs=("a1",)),
    post("unload, unknown", "/unload_lora_adapter", 400, {"lora_name": "zz"}),
    post("unload, field missing", "/unload_lora_adapter", 400, {}),
    chat("chat with an adapter", 200, f"{BASE}:a1", needs=("a1",)),
    chat(
        "chat with an adapter, streamed", 200, f"{BASE}:a1", needs=("a1",), stream=True, stream_options=USAGE
    ),
    chat("chat, a bare name is answered by the base", 200, "a1", needs=("a1",)),
    chat("chat, an unknown name is answered by the base", 200, "nope"),
    chat("chat, another base before the colon", 200, "other:a1", needs=("a1",)),
    chat("chat, unknown adapter", 400, f"{BASE}:zz"),
    chat("chat, unknown adapter, streamed", 400, f"{BASE}:zz", stream=True),
    chat("chat streamed with token ids", 400, stream=True, return_token_ids=True),
    chat("chat continued and begun anew", 200, messages=PARTIAL, continue_final_message=True),
    chat("chat, max_tokens 0", 200, max_tokens=0),
    completion("completion with an adapter", 200, f"{BASE}:a1", needs=("a1",)),
    completion("completion, unknown adapter", 400, f"{BASE}:zz"),
]
