"""Loss is taken on answers as an engine would generate them, under the prompt it would see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from finetune.trainers.base_model import LoadedBase, load_base
from finetune.trainers.chat import IGNORED, TemplateMismatch, TokenizedChat, tokenize_chat
from tests.tiny_model import make_tiny_model


def _message(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def _tokenize(base: LoadedBase, messages: list[dict[str, Any]], train_on: Any = "last") -> TokenizedChat:
    return tokenize_chat({"messages": messages}, base.tokenizer, base.stop_tokens, train_on)


def _learnt(base: LoadedBase, chat: TokenizedChat) -> list[str]:
    return [base.tokenizer.decode(chat.tokens[span.start : span.stop]) for span in chat.spans]


CHAT = [
    _message("user", "One?"),
    _message("assistant", "Yes."),
    _message("user", "Two?"),
    _message("assistant", "No."),
]


def test_an_answer_is_learnt_up_to_its_stop_token_and_nothing_else(base: LoadedBase) -> None:
    chat = _tokenize(base, CHAT[:2])

    assert _learnt(base, chat) == ["Yes.<|im_end|>"]
    prompt = base.tokenizer.apply_chat_template(CHAT[:1], add_generation_prompt=True, return_dict=False)
    assert chat.tokens[: chat.spans[0].start] == prompt
    assert chat.labels[: len(prompt)] == [IGNORED] * len(prompt)
    assert chat.labels[len(prompt) :] == chat.tokens[len(prompt) :]
    assert chat.completion_tokens == len(chat.tokens) - len(prompt)


def test_the_last_answer_or_all_of_them(base: LoadedBase) -> None:
    assert _learnt(base, _tokenize(base, CHAT)) == ["No.<|im_end|>"]
    assert _learnt(base, _tokenize(base, CHAT, "all")) == ["Yes.<|im_end|>", "No.<|im_end|>"]


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ((0, 1), ["No.<|im_end|>"]),
        ((1, 0), ["Yes.<|im_end|>"]),
        ((0, None), ["No.<|im_end|>"]),
        ((1, None), ["Yes.<|im_end|>", "No.<|im_end|>"]),
        ((0, 0), []),
    ],
)
def test_weights_choose_the_answers_to_learn(
    base: LoadedBase, weights: tuple[int | None, int | None], expected: list[str]
) -> None:
    first, second = weights
    messages = [CHAT[0], {**CHAT[1], "weight": first}, CHAT[2], {**CHAT[3], "weight": second}]

    assert _learnt(base, _tokenize(base, messages)) == expected


def test_text_parts_become_one_text(base: LoadedBase) -> None:
    parts = [{"type": "text", "text": "One"}, {"type": "text", "text": "Two"}]

    assert _tokenize(base, [_message("user", parts), CHAT[1]]) == _tokenize(
        base, [_message("user", "One\nTwo"), CHAT[1]]
    )


def test_a_template_that_changes_the_prompt_once_it_is_answered_is_refused(tmp_path: Path) -> None:
    template = (
        "{{ messages | length }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    base = load_base(make_tiny_model(tmp_path / "model", template), "float32", "cpu")

    with pytest.raises(TemplateMismatch, match="message 2"):
        _tokenize(base, CHAT[:2])
