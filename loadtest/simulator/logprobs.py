"""Logprobs in OpenAI's shapes; both engines write the same fields."""

from __future__ import annotations

from typing import Any

from loadtest.simulator.answers import Token
from loadtest.simulator.generation import Asked
from loadtest.simulator.replica import Pieces


def chat_logprobs(asked: Asked, pieces: Pieces) -> dict[str, Any] | None:
    """`choices[].logprobs` of a chat completion or of one of its chunks."""
    if not asked.wants_logprobs:
        return None
    return {"content": [_entry(piece.token, asked.top_logprobs) for piece in pieces]}


def completion_logprobs(asked: Asked, pieces: Pieces, first_offset: int | None) -> dict[str, Any] | None:
    """`choices[].logprobs` of a text completion; SGLang knows no offsets and writes -1."""
    if not asked.wants_logprobs:
        return None
    offsets, offset = [], first_offset or 0
    for piece in pieces:
        offsets.append(-1 if first_offset is None else offset)
        offset += len(piece.token.text)
    return {
        "text_offset": offsets,
        "token_logprobs": [piece.token.logprob for piece in pieces],
        "tokens": [piece.token.text for piece in pieces],
        "top_logprobs": [dict(_candidates(piece.token, asked.top_logprobs)) for piece in pieces],
    }


def _entry(token: Token, top: int) -> dict[str, Any]:
    return {
        **_one(token.text, token.logprob),
        "top_logprobs": [_one(text, logprob) for text, logprob in _candidates(token, top)],
    }


def _one(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def _candidates(token: Token, count: int) -> list[tuple[str, float]]:
    """The token itself, then others that are less likely."""
    others = [(f" other{rank}", token.logprob - rank) for rank in range(1, count)]
    return [(token.text, token.logprob), *others][:count]
