"""SGLang's bodies: answers, chunks, errors and model cards, field by field."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from loadtest.simulator import answers
from loadtest.simulator.generation import Asked, Piece
from loadtest.simulator.http import Refusal
from loadtest.simulator.logprobs import chat_logprobs, completion_logprobs
from loadtest.simulator.replica import Pieces

#: `matched_stop` of an answer that ended by itself: the end token's id.
_END_TOKEN_ID = 2


class SglangShapes:
    """Writes generations as SGLang does."""

    #: It waits for the first chunk, to be able to answer with a status.
    sends_head_at_once = False

    def whole(self, asked: Asked, choices: Sequence[Pieces]) -> dict[str, Any]:
        longest = max(map(len, choices), default=0)
        return {
            "id": asked.answer_id,
            "object": "chat.completion" if asked.is_chat else "text_completion",
            "created": asked.created,
            "model": asked.model,
            "choices": [_whole_choice(asked, index, pieces) for index, pieces in enumerate(choices)],
            "usage": _usage(asked, sum(map(len, choices))),
            "metadata": {
                "weight_version": "default",
                "weight_versions": [{"version": "default", "start": 0, "end": longest}],
            },
        }

    def opening(self, asked: Asked, choice: int) -> dict[str, Any] | None:
        return _delta_chunk(asked, choice, {"role": "assistant", "content": ""}) if asked.is_chat else None

    def token(self, asked: Asked, piece: Piece, generated: int) -> dict[str, Any]:
        usage = _usage(asked, generated) if asked.counts_usage_in_every_chunk else None
        if asked.is_chat:
            body = _delta_chunk(asked, piece.choice, {"content": piece.token.text})
            body["choices"][0]["logprobs"] = chat_logprobs(asked, [piece])
            return body if usage is None else body | {"usage": usage}
        choice = {
            "index": piece.choice,
            "text": piece.token.text,
            "logprobs": completion_logprobs(asked, [piece], None),
            "finish_reason": piece.finish_reason,
            "matched_stop": _matched_stop(piece),
        }
        return _chunk(asked, [choice]) | {"usage": usage}

    def closing(self, asked: Asked, choices: Sequence[Pieces]) -> list[dict[str, Any]]:
        chunks = []
        if asked.is_chat:
            for index, pieces in enumerate(choices):
                chunk = _delta_chunk(asked, index, {})
                reason = pieces[-1].finish_reason if pieces else "length"
                chunk["choices"][0] |= {
                    "finish_reason": reason,
                    "matched_stop": _matched_stop(pieces[-1]) if pieces else None,
                }
                chunks.append(chunk)
        if asked.includes_usage:
            usage = _usage(asked, sum(map(len, choices)))
            if not asked.is_chat:
                usage = {name: value for name, value in usage.items() if not name.endswith("_details")}
            chunks.append(_chunk(asked, []) | {"usage": usage})
        return chunks

    def internal_error(self) -> Refusal:
        message = "Internal server error: a fault of the simulator."
        return Refusal(500, error_body(500, "InternalServerError", message))


def error_body(status: int, error_type: str, message: str) -> dict[str, Any]:
    """An error; not wrapped in `error`, as OpenAI does it."""
    return {"object": "error", "message": message, "type": error_type, "param": None, "code": status}


def model_card(model: str, root: str, parent: str | None, max_model_len: int | None) -> dict[str, Any]:
    """An entry of `/v1/models`."""
    return {
        "id": model,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "sglang",
        "root": root,
        "parent": parent,
        "max_model_len": max_model_len,
    }


def _whole_choice(asked: Asked, index: int, pieces: Pieces) -> dict[str, Any]:
    text = "".join(piece.token.text for piece in pieces)
    ending: dict[str, Any] = {
        "finish_reason": pieces[-1].finish_reason if pieces else "length",
        "matched_stop": _matched_stop(pieces[-1]) if pieces else None,
    }
    if not asked.is_chat:
        return {
            "index": index,
            "text": text,
            "logprobs": completion_logprobs(asked, pieces, None),
            **ending,
        }
    choice = {
        "index": index,
        "message": {"role": "assistant", "content": text, "reasoning_content": None},
        "logprobs": chat_logprobs(asked, pieces),
        **ending,
    }
    if asked.returns_token_ids:
        choice["prompt_token_ids"] = answers.encode(asked.prompt_text)
        choice["response_token_ids"] = [piece.token.token_id for piece in pieces]
    return choice


def _delta_chunk(asked: Asked, choice: int, delta: dict[str, Any]) -> dict[str, Any]:
    body = {
        "index": choice,
        "delta": {"reasoning_content": None, **delta},
        "logprobs": None,
        "finish_reason": None,
        "matched_stop": None,
    }
    return _chunk(asked, [body])


def _chunk(asked: Asked, choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": asked.answer_id,
        "object": "chat.completion.chunk" if asked.is_chat else "text_completion",
        "created": asked.created,
        "model": asked.model,
        "choices": choices,
    }


def _matched_stop(piece: Piece) -> str | int | None:
    if piece.stopped_by is not None:
        return piece.stopped_by
    return _END_TOKEN_ID if piece.finish_reason == "stop" else None


def _usage(asked: Asked, generated: int) -> dict[str, Any]:
    return {
        "prompt_tokens": asked.prompt_tokens,
        "total_tokens": asked.prompt_tokens + generated,
        "completion_tokens": generated,
        "prompt_tokens_details": None,
        "reasoning_tokens": 0,
        "completion_tokens_details": None,
    }
