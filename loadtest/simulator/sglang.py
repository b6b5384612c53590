"""SGLang's dialect (0.5.23): every route, status and text that a driver or a gateway meets."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

from loadtest.simulator import answers, sglang_metrics
from loadtest.simulator.adapters import AdapterUnreadable, read_adapter
from loadtest.simulator.answers import BASE_MARK
from loadtest.simulator.checking import InvalidBody, Problem, read_body
from loadtest.simulator.faults import FaultKind
from loadtest.simulator.generation import read_asked, text_of
from loadtest.simulator.http import Refusal, Request, Responder
from loadtest.simulator.replica import Replica
from loadtest.simulator.routes import Routes
from loadtest.simulator.sglang_shapes import SglangShapes, error_body, model_card

_GENERATION_FIELDS = {"model": "string", "messages": "list", "temperature": "number"}
_ADAPTER_FIELDS = {"lora_name": "string", "lora_path": "string"}
_QUEUE_FULL = "The request queue is full."
_INCOMPATIBLE = (
    "LoRA adapter {name} with rank {rank} is incompatible with the current LoRA memory pool configuration. "
    "Please ensure that the LoRA adapter's rank is within the configured `--max-lora-rank` and that the "
    "target modules are included in `--lora-target-modules`."
)


class SglangDialect:
    """Answers for one replica as an SGLang server with `--enable-lora` does."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._shapes = SglangShapes()
        #: Loads, unloads and implicit loads take turns; an unload waits for its adapter's requests inside it.
        self._changing = asyncio.Lock()
        settings = replica.settings
        self.routes: Routes = {
            "/health": {"GET": _empty},
            "/health_generate": {"GET": _empty},
            "/ping": {"GET": _empty},
            "/metrics": {"GET": self._metrics},
            "/v1/loads": {"GET": self._loads},
            "/v1/models": {"GET": self._models},
            f"/v1/models/{settings.model}": {"GET": self._model},
            "/load_lora_adapter": {"POST": self._load},
            "/unload_lora_adapter": {"POST": self._unload},
            "/v1/chat/completions": {"POST": self._chat},
            "/v1/completions": {"POST": self._completion},
            "/v1/embeddings": {"POST": _embeddings},
            "/tokenize": {"POST": self._tokenize},
            "/detokenize": {"POST": _detokenize},
        }

    def may_enter(self, request: Request) -> bool:
        """Whether the request has the key, where one is asked for: everywhere but health and metrics."""
        key = self._replica.settings.api_key
        is_open = request.path.startswith(("/health", "/metrics"))
        return key is None or is_open or request.headers.get("authorization") == f"Bearer {key}"

    def lose_adapter(self, name: str) -> None:
        """Out of memory; the next request for it loads it again."""
        self._replica.adapters.drop(name)

    # --- reading

    async def _metrics(self, _request: Request, responder: Responder) -> None:
        text = sglang_metrics.render(self._replica)
        responder.send(200, text.encode(), "text/plain; version=0.0.4; charset=utf-8")

    async def _loads(self, request: Request, responder: Responder) -> None:
        has_sections = "include=core" not in request.query
        responder.send_json(200, sglang_metrics.loads(self._replica, has_sections))

    async def _models(self, _request: Request, responder: Responder) -> None:
        responder.send_json(200, {"object": "list", "data": [self._base_card(), *self._adapter_cards()]})

    async def _model(self, _request: Request, responder: Responder) -> None:
        responder.send_json(200, self._base_card())

    def _base_card(self) -> dict[str, Any]:
        settings = self._replica.settings
        return model_card(settings.model, settings.model, None, settings.max_model_len)

    def _adapter_cards(self) -> list[dict[str, Any]]:
        base = self._replica.settings.model
        loaded = self._replica.adapters.resident.values()
        return [model_card(adapter.name, adapter.path, base, None) for adapter in loaded]

    async def _tokenize(self, request: Request, responder: Responder) -> None:
        body = _read(request, {"prompt": "string", "messages": "list"})
        text = "\n".join(map(text_of, body["messages"])) if "messages" in body else body["prompt"]
        tokens = answers.encode(text)
        limit = self._replica.settings.max_model_len
        responder.send_json(200, {"tokens": tokens, "count": len(tokens), "max_model_len": limit})

    # --- adapters

    async def _load(self, request: Request, responder: Responder) -> None:
        body = _read(request, _ADAPTER_FIELDS, ("lora_name", "lora_path"), "LoadLoRAAdapterReqInput")
        name, path = body["lora_name"], body["lora_path"]
        async with self._changing:
            await self._replica.pause(self._replica.settings.load_seconds)
            reason = self._try_load(name, path)
        responder.send_json(400 if reason else 200, self._change_result(reason))

    def _try_load(self, name: str, path: str) -> str:
        """Load an adapter; the reason when it cannot be, else nothing."""
        replica = self._replica
        if name in replica.adapters.resident:
            return f"Failed to load LoRA adapter {name} because it is already loaded"
        if replica.faults.take(FaultKind.FAIL_LOAD, name):
            return "a fault of the simulator"
        try:
            adapter = read_adapter(name, path)
        except FileNotFoundError:
            return (
                f"Repo id must be in the form 'repo_name' or 'namespace/repo_name': '{path}'. "
                "Use `repo_type` argument if needed."
            )
        except AdapterUnreadable as unreadable:
            return str(unreadable)
        if adapter.rank > replica.settings.max_lora_rank:
            return _INCOMPATIBLE.format(name=name, rank=adapter.rank)
        replica.adapters.add(adapter)
        replica.counts.loads += 1
        return ""

    async def _unload(self, request: Request, responder: Responder) -> None:
        body = _read(request, _ADAPTER_FIELDS, ("lora_name",), "UnloadLoRAAdapterReqInput")
        name = body["lora_name"]
        replica = self._replica
        async with self._changing:
            if name not in replica.adapters.resident:
                names = list(replica.adapters.resident)
                reason = f"LoRA with name {name} does not exist. Loaded LoRAs: odict_keys({names})"
                responder.send_json(400, self._change_result(reason) | {"loaded_adapters": None})
                return
            replica.adapters.drop(name)
            await replica.wait_until_idle(name)
            replica.counts.unloads += 1
        responder.send_json(200, self._change_result(""))

    def _change_result(self, reason: str) -> dict[str, Any]:
        loaded = self._replica.adapters.resident.values()
        return {
            "rid": None,
            "http_worker_ipc": None,
            "success": not reason,
            "error_message": reason,
            "loaded_adapters": {adapter.name: adapter.path for adapter in loaded},
        }

    # --- generating

    async def _chat(self, request: Request, responder: Responder) -> None:
        body = _read(request, _GENERATION_FIELDS, ("messages",))
        if not body["messages"]:
            raise _error(400, "BadRequestError", "Messages cannot be empty.")
        if body.get("return_token_ids") and body.get("stream"):
            reason = (
                "return_token_ids is not supported with streaming on /v1/chat/completions. Please set "
                "stream=false when using return_token_ids=true."
            )
            raise _error(400, "BadRequest", reason)
        await self._generate(body, responder, is_chat=True)

    async def _completion(self, request: Request, responder: Responder) -> None:
        body = _read(request, {"model": "string", "temperature": "number"}, ("prompt",))
        await self._generate(body, responder, is_chat=False)

    async def _generate(self, body: dict[str, Any], responder: Responder, *, is_chat: bool) -> None:
        settings = self._replica.settings
        self._check_max_tokens(body)
        adapter, mark = await self._choose(body.get("model") or "default")
        asked = read_asked(
            body,
            is_chat=is_chat,
            model=body.get("model") or "default",
            adapter=adapter,
            mark=mark,
            answer_id=str(body.get("rid") or uuid.uuid4().hex),
            default_max_tokens=settings.max_model_len if is_chat else 16,
        )
        if settings.max_queued is not None and self._replica.waiting >= settings.max_queued:
            await self._refuse_full(asked.is_stream, responder)
            return
        await self._replica.generate(asked, self._shapes, responder)

    async def _refuse_full(self, is_stream: bool, responder: Responder) -> None:
        """A full queue: a status, or inside a stream that begins with 200."""
        if not is_stream:
            raise _error(503, "503", _QUEUE_FULL)
        responder.start_stream()
        await responder.send_event({"error": error_body(503, "SERVICE_UNAVAILABLE", _QUEUE_FULL)})
        responder.end_stream()

    def _check_max_tokens(self, body: dict[str, Any]) -> None:
        max_tokens, limit = body.get("max_tokens"), self._replica.settings.max_model_len
        if max_tokens is not None and max_tokens < 0:
            raise _error(400, "BadRequestError", f"max_new_tokens must be at least 0, got {max_tokens}.")
        if max_tokens is not None and max_tokens > limit:
            reason = (
                f"max_completion_tokens is too large: {max_tokens}.This model supports at most {limit} "
                "completion tokens."
            )
            raise _error(400, "BadRequestError", reason)

    async def _choose(self, model: str) -> tuple[str | None, str]:
        """The adapter after the colon, loaded if it was once; without a colon always the base model."""
        _, colon, name = model.partition(":")
        if not colon:
            return None, BASE_MARK
        table = self._replica.adapters
        if name not in table.known:
            loaded = f"dict_keys({list(table.known)})"
            reason = f"Got LoRA adapter that has never been loaded: {name}\nAll loaded adapters: {loaded}."
            raise _error(400, "BadRequestError", reason)
        if name not in table.resident:
            await self._load_implicitly(name)
        mark = table.use(name).mark
        return name, BASE_MARK if self._replica.faults.take(FaultKind.WRONG_ADAPTER, name) else mark

    async def _load_implicitly(self, name: str) -> None:
        async with self._changing:
            await self._replica.pause(self._replica.settings.load_seconds)
            if name in self._replica.adapters.resident:
                return
            if reason := self._try_load(name, self._replica.adapters.known[name].path):
                text = f"Failed to implicitly load LoRA adapter {name}: {reason}"
                raise _error(400, "BadRequestError", text)


async def _empty(_request: Request, responder: Responder) -> None:
    responder.send(200, b"")


async def _embeddings(_request: Request, _responder: Responder) -> None:
    reason = (
        "This model does not appear to be an embedding model by default. Please add `--is-embedding` when "
        "launching the server or try another model."
    )
    raise _error(400, "BadRequestError", reason)


async def _detokenize(request: Request, responder: Responder) -> None:
    body = _read(request, {"tokens": "list"}, ("tokens",))
    responder.send_json(200, {"text": answers.decode(body["tokens"])})


def _read(
    request: Request,
    fields: dict[str, str],
    required: tuple[str, ...] = (),
    struct: str | None = None,
) -> dict[str, Any]:
    if not request.headers.get("content-type", "").startswith("application/json"):
        reason = "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed"
        raise _error(400, "Bad Request", reason)
    try:
        return read_body(request.body, fields, required)
    except InvalidBody as invalid:
        raise _error(400, "Bad Request", _describe(invalid.problem, struct)) from None


def _describe(problem: Problem, struct: str | None) -> str:
    """The problem; a body that may be a struct of SGLang's own fails for that reason, too."""
    lines = [problem.described(problem.loc, problem.input)]
    if struct is not None and problem.type != "json_invalid":
        message = f"Input should be an instance of {struct}"
        other = Problem("is_instance_of", ("body",), message, problem.input)
        lines.insert(0, other.described(other.loc, other.input))
    count = f"{len(lines)} validation error{'s' if len(lines) > 1 else ''}"
    return "\n".join((f"{count}:", *lines))


def _error(status: int, error_type: str, message: str) -> Refusal:
    return Refusal(status, error_body(status, error_type, message))
