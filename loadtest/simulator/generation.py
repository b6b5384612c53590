"""What a generation request asks for, and the answer cut to it. Pure."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from loadtest.simulator import answers
from loadtest.simulator.answers import Token


@dataclass(frozen=True, slots=True)
class Asked:
    """A chat or text completion, as both dialects understand it."""

    #: As the client wrote it; answers repeat it.
    model: str
    adapter: str | None
    mark: str
    answer_id: str
    is_chat: bool
    prompt_text: str
    key: int
    #: Tokens of the answer that the prompt already holds (`continue_final_message`).
    said: int
    max_tokens: int
    created: int
    choices: int = 1
    stops: tuple[str, ...] = ()
    is_stream: bool = False
    includes_usage: bool = False
    counts_usage_in_every_chunk: bool = False
    wants_logprobs: bool = False
    top_logprobs: int = 0
    returns_token_ids: bool = False
    ignores_end: bool = False

    @property
    def prompt_tokens(self) -> int:
        return answers.count_tokens(self.prompt_text)


@dataclass(frozen=True, slots=True)
class Piece:
    """One token of one choice, and how the choice ended when it is the last."""

    token: Token
    choice: int
    finish_reason: str | None = None
    #: The stop string that ended it.
    stopped_by: str | None = None


def answer_pieces(asked: Asked, choice: int) -> list[Piece]:
    """The tokens of one choice, up to its end, the limit or a stop string."""
    natural = asked.max_tokens if asked.ignores_end else max(answers.NATURAL_TOKENS - asked.said, 0)
    count = min(asked.max_tokens, natural)
    last_reason = "length" if asked.max_tokens <= natural else "stop"
    endless = answers.answer_tokens(asked.mark, asked.key, choice)
    tokens = list(islice(endless, asked.said, asked.said + count))
    if asked.stops:
        cut = _cut_at_stop(tokens, asked.stops, choice)
        if cut is not None:
            return cut
    return [
        Piece(token, choice, last_reason if number == count else None)
        for number, token in enumerate(tokens, start=1)
    ]


def interleaved(choices: Sequence[Sequence[Piece]]) -> Iterator[Piece]:
    """The pieces of all choices as a batch gives them: one token of each a step."""
    for step in range(max((len(pieces) for pieces in choices), default=0)):
        for pieces in choices:
            if step < len(pieces):
                yield pieces[step]


def read_asked(
    body: dict[str, Any],
    *,
    is_chat: bool,
    model: str,
    adapter: str | None,
    mark: str,
    answer_id: str,
    default_max_tokens: int,
) -> Asked:
    """The fields of a body whose form was checked already."""
    key, said, prompt_text = _read_prompt(body, is_chat, mark)
    options = body.get("stream_options") or {}
    logprobs = body.get("logprobs")
    stops = body.get("stop") or ()
    max_tokens = body.get("max_completion_tokens") if is_chat else None
    max_tokens = body.get("max_tokens") if max_tokens is None else max_tokens
    return Asked(
        model=model,
        adapter=adapter,
        mark=mark,
        answer_id=answer_id,
        is_chat=is_chat,
        prompt_text=prompt_text,
        key=key,
        said=said,
        max_tokens=default_max_tokens if max_tokens is None else int(max_tokens),
        created=int(time.time()),
        choices=int(body.get("n") or 1),
        stops=(stops,) if isinstance(stops, str) else tuple(stops),
        is_stream=bool(body.get("stream")),
        includes_usage=bool(options.get("include_usage")),
        counts_usage_in_every_chunk=bool(options.get("continuous_usage_stats")),
        wants_logprobs=logprobs is not None and logprobs is not False,
        top_logprobs=int(body.get("top_logprobs") or 0) if is_chat else int(logprobs or 0),
        returns_token_ids=bool(body.get("return_token_ids")),
        ignores_end=bool(body.get("ignore_eos")),
    )


def _read_prompt(body: dict[str, Any], is_chat: bool, mark: str) -> tuple[int, int, str]:
    """The prompt's key, how many answer tokens it holds, and its text."""
    if not is_chat:
        prompt = body["prompt"]
        text = prompt if isinstance(prompt, str) else answers.decode(prompt)
        return answers.prompt_key(text), 0, text
    messages = body["messages"]
    prompt_text = "\n".join(text_of(message) for message in messages)
    if not body.get("continue_final_message"):
        return answers.prompt_key(messages), 0, prompt_text
    key = answers.prompt_key(messages[:-1])
    said = answers.tokens_said(mark, key, text_of(messages[-1]))
    # A text that is not a beginning of its own answer is continued in some other way.
    return (answers.prompt_key(messages), 0, prompt_text) if said is None else (key, said, prompt_text)


def text_of(message: dict[str, Any]) -> str:
    """The text of a message, whose content may be a list of parts."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content or ""


def _cut_at_stop(tokens: Sequence[Token], stops: Sequence[str], choice: int) -> list[Piece] | None:
    text, pieces = "", []
    for token in tokens:
        found = [(text + token.text).find(stop) for stop in stops]
        hits = [(position, stop) for position, stop in zip(found, stops, strict=True) if position >= 0]
        if hits:
            position, stop = min(hits)
            kept = Token((text + token.text)[len(text) : position], token.token_id, token.logprob)
            pieces.append(Piece(kept, choice, "stop", stop))
            return pieces
        text += token.text
        pieces.append(Piece(token, choice))
    return None
