"""From chats to tokens, by the chat template in the base model's folder: the one that serves it.

A chat that the template cannot split cleanly into prompt and completion is an error, never trained on
under a different prompt than the one it will be served with.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

#: What a label is where no loss is taken (PyTorch's default).
IGNORED = -100

Row = Mapping[str, Any]


class ChatTokenizer(Protocol):
    """The part of a transformers tokenizer that is used here."""

    eos_token_id: int | None

    def apply_chat_template(self, conversation: Sequence[Mapping[str, Any]], **options: Any) -> list[int]: ...


class TemplateMismatch(ValueError):
    """The chat template does not render a prompt as the beginning of the whole chat."""


@dataclass(frozen=True, slots=True)
class Span:
    """A completion inside a chat: tokens `start` to `stop`, answering `messages`."""

    messages: list[dict[str, Any]]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class TokenizedChat:
    """One example."""

    tokens: list[int]
    spans: list[Span]

    @property
    def labels(self) -> list[int]:
        """The tokens where loss is taken, `IGNORED` elsewhere."""
        labels = [IGNORED] * len(self.tokens)
        for span in self.spans:
            labels[span.start : span.stop] = self.tokens[span.start : span.stop]
        return labels

    @property
    def completion_tokens(self) -> int:
        return sum(span.stop - span.start for span in self.spans)


def tokenize_chat(
    row: Row, tokenizer: ChatTokenizer, stop_tokens: Iterable[int], train_on: Literal["last", "all"]
) -> TokenizedChat:
    """The tokens of a chat and the spans that loss is taken on.

    A span is an assistant message as an engine would generate it: from after the generation prompt to
    the stop token, which is learnt too. A message's `weight` 0 leaves it out, 1 takes it in (OpenAI's
    field); without weights `train_on` decides.
    """
    stops = frozenset(stop_tokens)
    messages = [_plain(message) for message in row["messages"]]
    tools = row.get("tools")

    def render(count: int, *, prompt: bool) -> list[int]:
        return list(
            tokenizer.apply_chat_template(
                messages[:count], add_generation_prompt=prompt, tools=tools, return_dict=False
            )
        )

    tokens = render(len(messages), prompt=False)
    spans = []
    for index in _trained_messages(row["messages"], train_on):
        prompt, turn = render(index, prompt=True), render(index + 1, prompt=False)
        if turn[: len(prompt)] != prompt or tokens[: len(turn)] != turn:
            raise TemplateMismatch(
                f"message {index + 1}: the chat template renders this prompt differently once the answer "
                "follows, so the model would be trained on another prompt than it is served with"
            )
        stop = next((i + 1 for i in range(len(prompt), len(turn)) if turn[i] in stops), len(turn))
        spans.append(Span(messages[:index], len(prompt), stop))
    if not spans:
        return TokenizedChat(tokens, [])
    return TokenizedChat(tokens[: max(span.stop for span in spans)], spans)


def _trained_messages(messages: Sequence[Mapping[str, Any]], train_on: Literal["last", "all"]) -> list[int]:
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if any(messages[i].get("weight") is not None for i in answers):
        return [i for i in answers if messages[i].get("weight") in (None, 1)]
    return answers if train_on == "all" else answers[-1:]


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
    """The message as a template takes it: text parts joined as engines do, our `weight` left out."""
    plain = {name: value for name, value in message.items() if name != "weight" and value is not None}
    content = plain.get("content", "")
    if not isinstance(content, str):
        content = "\n".join(part["text"] for part in content if part.get("type") == "text")
    return {**plain, "content": content}
