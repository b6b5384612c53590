"""vLLM's bodies: answers, chunks and model cards, field by field."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any

from loadtest.simulator import answers
from loadtest.simulator.generation import Asked, Piece
from loadtest.simulator.http import Refusal
from loadtest.simulator.logprobs import chat_logprobs, completion_logprobs
from loadtest.simulator.replica import Pieces

#: As with `--enable-prompt-tokens-details`; nothing is ever cached.
_DETAILS = {
    "prompt_tokens_details": {"cached_tokens": 0, "created_cache_tokens": None, "multimodal_tokens": None}
}
_FINGERPRINT = "vllm-0.32.0-simulated"


class VllmShapes:
    """Writes generations as vLLM does."""

    #: uvicorn writes the head when the response starts, before the first token is computed.
    sends_head_at_once = True

    def whole(self, asked: Asked, choices: Sequence[Pieces]) -> dict[str, Any]:
        generated = sum(map(len, choices))
        body: dict[str, Any] = {
            "id": asked.answer_id,
            "object": "chat.completion" if asked.is_chat else "text_completion",
            "created": asked.created,
            "model": asked.model,
            "choices": [_whole_choice(asked, index, pieces) for index, pieces in enumerate(choices)],
            "service_tier": None,
            "system_fingerprint": _FINGERPRINT,
            "usage": {**_usage(asked, generated), **_DETAILS, "completion_tokens_details": None},
        }
        if asked.is_chat:
            body |= {"prompt_logprobs": None, "prompt_token_ids": _prompt_ids(asked), "prompt_text": None}
        return body | {"kv_transfer_params": None, "ec_transfer_params": None, "metrics": None}

    def opening(self, asked: Asked, choice: int) -> dict[str, Any] | None:
        if not asked.is_chat:
            return None
        delta = {"role": "assistant", "content": ""}
        body = _chunk(
            asked, [{"index": choice, "delta": delta, "logprobs": None, "finish_reason": None}], generated=0
        )
        return body | {"prompt_token_ids": _prompt_ids(asked), "prompt_text": None}

    def token(self, asked: Asked, piece: Piece, generated: int) -> dict[str, Any]:
        ids = [piece.token.token_id] if asked.returns_token_ids else None
        if not asked.is_chat:
            choice = {
                "index": piece.choice,
                "text": piece.token.text,
                "logprobs": completion_logprobs(asked, [piece], 0),
                "finish_reason": piece.finish_reason,
                "stop_reason": piece.stopped_by,
                "prompt_token_ids": _prompt_ids(asked) if generated == 1 else None,
                "token_ids": ids,
            }
            return _sealed(asked, piece, _chunk(asked, [choice], generated))
        choice = {
            "index": piece.choice,
            "delta": {"content": piece.token.text},
            "logprobs": chat_logprobs(asked, [piece]),
            "finish_reason": piece.finish_reason,
        }
        if piece.finish_reason is not None:
            choice["stop_reason"] = piece.stopped_by
        return _sealed(asked, piece, _chunk(asked, [choice | {"token_ids": ids}], generated))

    def closing(self, asked: Asked, choices: Sequence[Pieces]) -> list[dict[str, Any]]:
        if not asked.includes_usage:
            return []
        body = _chunk(asked, [], generated=None)
        body["usage"] = {
            **_usage(asked, sum(map(len, choices))),
            "prompt_tokens_details": {"cached_tokens": 0},
        }
        return [body | {"system_fingerprint": _FINGERPRINT}]

    def internal_error(self) -> Refusal:
        message = "EngineCore encountered an issue: a fault of the simulator."
        error = {"message": message, "type": "InternalServerError", "param": None, "code": 500}
        return Refusal(500, {"error": error})


def model_card(model: str, root: str, parent: str | None, max_model_len: int | None) -> dict[str, Any]:
    """An entry of `/v1/models`."""
    now = int(time.time())
    permission = {
        "id": f"modelperm-{uuid.uuid4().hex[:16]}",
        "object": "model_permission",
        "created": now,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }
    return {
        "id": model,
        "object": "model",
        "created": now,
        "owned_by": "vllm",
        "root": root,
        "parent": parent,
        "max_model_len": max_model_len,
        "permission": [permission],
    }


def _whole_choice(asked: Asked, index: int, pieces: Pieces) -> dict[str, Any]:
    text = "".join(piece.token.text for piece in pieces)
    ids = [piece.token.token_id for piece in pieces] if asked.returns_token_ids else None
    ending: dict[str, Any] = {
        "finish_reason": pieces[-1].finish_reason if pieces else "stop",
        "stop_reason": pieces[-1].stopped_by if pieces else None,
        "token_ids": ids,
    }
    if not asked.is_chat:
        return {
            "index": index,
            "text": text,
            "logprobs": completion_logprobs(asked, pieces, 0),
            **ending,
            "prompt_logprobs": None,
            "prompt_token_ids": _prompt_ids(asked),
            "routed_experts": None,
        }
    message = {
        "role": "assistant",
        "content": text,
        "refusal": None,
        "annotations": None,
        "audio": None,
        "function_call": None,
        "reasoning": None,
    }
    return {
        "index": index,
        "message": message,
        "logprobs": chat_logprobs(asked, pieces),
        **ending,
        "routed_experts": None,
    }


def _chunk(asked: Asked, choices: list[dict[str, Any]], generated: int | None) -> dict[str, Any]:
    body: dict[str, Any] = {
        "id": asked.answer_id,
        "object": "chat.completion.chunk" if asked.is_chat else "text_completion",
        "created": asked.created,
        "model": asked.model,
        "choices": choices,
    }
    if asked.counts_usage_in_every_chunk and generated is not None:
        body["usage"] = {**_usage(asked, generated), "completion_tokens_details": None}
    return body


def _sealed(asked: Asked, piece: Piece, chunk: dict[str, Any]) -> dict[str, Any]:
    """The chunk, with the fingerprint that a stream's last one has."""
    if piece.finish_reason is not None and not asked.includes_usage:
        chunk["system_fingerprint"] = _FINGERPRINT
    return chunk


def _usage(asked: Asked, generated: int) -> dict[str, Any]:
    return {
        "prompt_tokens": asked.prompt_tokens,
        "total_tokens": asked.prompt_tokens + generated,
        "completion_tokens": generated,
    }


def _prompt_ids(asked: Asked) -> list[int] | None:
    return answers.encode(asked.prompt_text) if asked.returns_token_ids else None
