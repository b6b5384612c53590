"""vLLM's dialect (0.32): every route, status and text that a driver or a gateway meets."""

from __future__ import annotations

import uuid
from typing import Any

from loadtest.simulator import answers, vllm_metrics
from loadtest.simulator.adapters import AdapterUnreadable, read_adapter
from loadtest.simulator.answers import BASE_MARK
from loadtest.simulator.checking import InvalidBody, Problem, read_body
from loadtest.simulator.faults import FaultKind
from loadtest.simulator.generation import read_asked, text_of
from loadtest.simulator.http import Refusal, Request, Responder
from loadtest.simulator.replica import Replica
from loadtest.simulator.routes import Routes
from loadtest.simulator.vllm_shapes import VllmShapes, model_card

_GENERATION_FIELDS = {"model": "string", "messages": "list", "temperature": "number"}
_ADAPTER_FIELDS = {"lora_name": "string", "lora_path": "string"}
#: The routes that answer without the key: everything that is not below /v1.
_GUARDED = "/v1"


class VllmDialect:
    """Answers for one replica as a vLLM server with runtime adapter updates does."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._shapes = VllmShapes()
        self.routes: Routes = {
            "/health": {"GET": _empty},
            "/ping": {"GET": _empty, "POST": _empty},
            "/version": {"GET": _version},
            "/metrics": {"GET": self._metrics},
            "/v1/models": {"GET": self._models},
            "/v1/load_lora_adapter": {"POST": self._load},
            "/v1/unload_lora_adapter": {"POST": self._unload},
            "/v1/chat/completions": {"POST": self._chat},
            "/v1/completions": {"POST": self._completion},
            "/tokenize": {"POST": self._tokenize},
            "/detokenize": {"POST": self._detokenize},
        }

    def may_enter(self, request: Request) -> bool:
        """Whether the request has the key, where one is asked for."""
        key = self._replica.settings.api_key
        return (
            key is None
            or not request.path.startswith(_GUARDED)
            or request.headers.get("authorization") == f"Bearer {key}"
        )

    def lose_adapter(self, name: str) -> None:
        """As after a restart: the name is unknown."""
        self._replica.adapters.forget(name)

    # --- reading

    async def _metrics(self, _request: Request, responder: Responder) -> None:
        text = vllm_metrics.render(self._replica)
        responder.send(200, text.encode(), "text/plain; version=1.0.0; charset=utf-8")

    async def _models(self, _request: Request, responder: Responder) -> None:
        settings = self._replica.settings
        cards = [model_card(settings.model, settings.model, None, settings.max_model_len)]
        for adapter in self._replica.adapters.known.values():
            cards.append(model_card(adapter.name, adapter.path, settings.model, None))
        responder.send_json(200, {"object": "list", "data": cards})

    async def _tokenize(self, request: Request, responder: Responder) -> None:
        body = _read(request, {"prompt": "string", "messages": "list"})
        self._check_model(body)
        text = "\n".join(map(text_of, body["messages"])) if "messages" in body else body["prompt"]
        tokens = answers.encode(text)
        limit = self._replica.settings.max_model_len
        responder.send_json(
            200, {"count": len(tokens), "max_model_len": limit, "tokens": tokens, "token_strs": None}
        )

    async def _detokenize(self, request: Request, responder: Responder) -> None:
        body = _read(request, {"tokens": "list"}, ("tokens",))
        self._check_model(body)
        responder.send_json(200, {"prompt": answers.decode(body["tokens"])})

    # --- adapters

    async def _load(self, request: Request, responder: Responder) -> None:
        body = _read(request, _ADAPTER_FIELDS, ("lora_name", "lora_path"))
        name, path = body["lora_name"], body["lora_path"]
        replica, settings = self._replica, self._replica.settings
        if not name or not path:
            raise _error(400, "InvalidUserInput", "Both 'lora_name' and 'lora_path' must be provided.")
        if name == settings.model:
            raise _error(
                400, "InvalidUserInput", f"The lora adapter '{name}' conflicts with a served base model."
            )
        if name in replica.adapters.known and not body.get("load_inplace"):
            raise _error(
                400,
                "InvalidUserInput",
                f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in "
                "place, set 'load_inplace' to True.",
            )
        await replica.pause(settings.load_seconds)
        if replica.faults.take(FaultKind.FAIL_LOAD, name):
            raise _error(
                500, "InternalServerError", "Call to add_lora method failed: a fault of the simulator."
            )
        try:
            adapter = read_adapter(name, path)
        except FileNotFoundError:
            reason = f"Loading lora {name} failed: No adapter found for <path>"
            raise _error(404, "NotFoundError", reason) from None
        except AdapterUnreadable as unreadable:
            reason = f"Call to add_lora method failed: {unreadable}"
            raise _error(500, "InternalServerError", reason) from None
        if adapter.rank > settings.max_lora_rank:
            raise _error(
                500,
                "InternalServerError",
                f"Call to add_lora method failed: LoRA rank {adapter.rank} is greater than max_lora_rank "
                f"{settings.max_lora_rank}.",
            )
        replica.adapters.add(adapter)
        replica.counts.loads += 1
        responder.send(200, f"Success: LoRA adapter '{name}' added successfully.".encode())

    async def _unload(self, request: Request, responder: Responder) -> None:
        name = _read(request, _ADAPTER_FIELDS, ("lora_name",))["lora_name"]
        if name not in self._replica.adapters.known:
            raise _error(404, "NotFoundError", f"The lora adapter '{name}' cannot be found.")
        self._replica.adapters.forget(name)
        self._replica.counts.unloads += 1
        responder.send(200, f"Success: LoRA adapter '{name}' removed successfully.".encode())

    # --- generating

    async def _chat(self, request: Request, responder: Responder) -> None:
        body = _read(request, _GENERATION_FIELDS, ("messages",))
        if not body["messages"]:
            reason = "Cannot apply chat template to an empty conversation. Provide at least one message."
            raise _error(400, "BadRequestError", reason)
        if body.get("continue_final_message") and body.get("add_generation_prompt", True):
            reason = (
                "continue_final_message and add_generation_prompt are not compatible. Use "
                "continue_final_message when you want the model to continue the final message, and "
                "add_generation_prompt when you want to add a header that will prompt it to start a new "
                "assistant message instead."
            )
            raise _error(400, "BadRequestError", reason)
        await self._generate(request, body, responder, is_chat=True)

    async def _completion(self, request: Request, responder: Responder) -> None:
        body = _read(request, {"model": "string", "temperature": "number"})
        self._check_model(body)
        if not body.get("prompt"):
            reason = "Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)"
            raise _error(400, "BadRequestError", reason, "prompt")
        await self._generate(request, body, responder, is_chat=False)

    async def _generate(
        self, request: Request, body: dict[str, Any], responder: Responder, *, is_chat: bool
    ) -> None:
        settings = self._replica.settings
        adapter, mark = self._check_model(body)
        prefix = "chatcmpl" if is_chat else "cmpl"
        asked = read_asked(
            body,
            is_chat=is_chat,
            model=body.get("model") or settings.model,
            adapter=adapter,
            mark=mark,
            answer_id=f"{prefix}-{request.headers.get('x-request-id') or uuid.uuid4().hex[:16]}",
            default_max_tokens=settings.max_model_len if is_chat else 16,
        )
        _check_max_tokens(asked.max_tokens, settings.max_model_len)
        if asked.choices > 1 and body.get("temperature") == 0:
            reason = f"n must be 1 when using greedy sampling, got {asked.choices}."
            raise _error(400, "BadRequestError", reason)
        await self._replica.generate(asked, self._shapes, responder)

    def _check_model(self, body: dict[str, Any]) -> tuple[str | None, str]:
        """The adapter that `model` names (None: the base) and the mark of what will answer."""
        settings, table = self._replica.settings, self._replica.adapters
        model = body.get("model") or settings.model
        if model == settings.model:
            return None, BASE_MARK
        if model not in table.known:
            reason = f"The model `{model}` does not exist. Valid aliases: {settings.model}."
            raise _error(404, "NotFoundError", reason, "model")
        try:
            mark = table.use(model).mark
        except (FileNotFoundError, AdapterUnreadable) as error:
            raise _error(500, "InternalServerError", str(error)) from None
        if self._replica.faults.take(FaultKind.WRONG_ADAPTER, model):
            mark = BASE_MARK
        return model, mark


async def _empty(_request: Request, responder: Responder) -> None:
    responder.send(200, b"")


async def _version(_request: Request, responder: Responder) -> None:
    responder.send_json(200, {"version": "0.32.0"})


def _read(request: Request, fields: dict[str, str], required: tuple[str, ...] = ()) -> dict[str, Any]:
    if not request.headers.get("content-type", "").startswith("application/json"):
        reason = "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed"
        raise _error(400, "Bad Request", reason)
    try:
        return read_body(request.body, fields, required)
    except InvalidBody as invalid:
        problem = invalid.problem
        place = ".".join(map(str, problem.loc))
        text = problem.described(place, _shown(problem))
        raise _error(400, "Bad Request", f"1 validation error:\n{text}", place) from None


def _shown(problem: Problem) -> str:
    if isinstance(problem.input, dict | list):
        return f"<{type(problem.input).__name__} of {len(problem.input)} items>"
    return str(problem.input)


def _check_max_tokens(max_tokens: int, max_model_len: int) -> None:
    if max_tokens < 1:
        reason = (
            f"max_tokens must be at least 1, got {max_tokens}. (parameter=max_tokens, value={max_tokens})"
        )
        raise _error(400, "BadRequestError", reason, "max_tokens")
    if max_tokens > max_model_len:
        reason = (
            f"max_tokens={max_tokens} cannot be greater than max_model_len={max_model_len}. Please request "
            f"fewer output tokens. (parameter=max_tokens, value={max_tokens})"
        )
        raise _error(400, "BadRequestError", reason, "max_tokens")


def _error(status: int, error_type: str, message: str, param: str | None = None) -> Refusal:
    return Refusal(
        status, {"error": {"message": message, "type": error_type, "param": param, "code": status}}
    )
