"""The simulated model: deterministic, tells its weights, continues its own text."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.simulator import answers, base_answer, marks_in, reference_generation, weights_mark
from loadtest.simulator.generation import Asked, answer_pieces, read_asked
from tests.adapters import write_adapter

MESSAGES = [{"role": "user", "content": "Say something."}]
marks = st.integers(0, 2**32 - 1).map(lambda number: f"{number:08x}")


def asked(**body: object) -> Asked:
    return read_asked(
        {"messages": MESSAGES, **body},
        is_chat=True,
        model="m",
        adapter=None,
        mark="1f0c33ab",
        answer_id="id",
        default_max_tokens=1000,
    )


def text_of(request: Asked) -> str:
    return "".join(piece.token.text for piece in answer_pieces(request, 0))


def test_the_reference_names_the_weights_throughout_and_differs_from_the_base(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", seed=1)

    reference = reference_generation(folder, MESSAGES, 16)

    assert marks_in(reference.text) == [weights_mark(folder)] * 4
    assert len(reference.logprobs) == len(reference.base_logprobs) == 16
    assert all(logprob < 0 for logprob in reference.logprobs)
    assert min(a - b for a, b in zip(reference.logprobs, reference.base_logprobs, strict=True)) > 0.9
    assert reference.text != base_answer(MESSAGES, 16)


def test_two_adapters_have_two_marks_and_equal_weights_have_one(tmp_path: Path) -> None:
    first = weights_mark(write_adapter(tmp_path / "a", seed=1))

    assert first == weights_mark(write_adapter(tmp_path / "b", seed=1))
    assert first != weights_mark(write_adapter(tmp_path / "c", seed=2))


@given(mark=marks, text=st.text(), cut=st.integers(0, 30))
def test_an_answer_is_continued_where_it_was_cut(mark: str, text: str, cut: int) -> None:
    key = answers.prompt_key([{"role": "user", "content": text}])
    said = "".join(token.text for token in islice(answers.answer_tokens(mark, key), cut))

    assert answers.tokens_said(mark, key, said) == cut


@given(mark=marks, cut=st.integers(1, 60))
def test_a_text_cut_inside_a_token_is_not_its_own(mark: str, cut: int) -> None:
    key = answers.prompt_key(MESSAGES)
    tokens = [token.text for token in islice(answers.answer_tokens(mark, key), 12)]
    text = "".join(tokens)[:cut]
    boundaries = {len("".join(tokens[:count])) for count in range(13)}

    assert (answers.tokens_said(mark, key, text) is None) == (cut not in boundaries)


@given(st.text())
def test_prompt_tokens_read_back_as_the_prompt(text: str) -> None:
    tokens = answers.encode(text)

    assert answers.decode(tokens) == text
    assert len(tokens) == answers.count_tokens(text)


@pytest.mark.parametrize(
    ("body", "tokens", "reason"),
    [
        ({}, answers.NATURAL_TOKENS, "stop"),
        ({"max_tokens": 5}, 5, "length"),
        ({"max_tokens": 200}, answers.NATURAL_TOKENS, "stop"),
        ({"max_tokens": 200, "ignore_eos": True}, 200, "length"),
        ({"max_completion_tokens": 3, "max_tokens": 9}, 3, "length"),
    ],
)
def test_an_answer_ends_where_asked_or_by_itself(body: dict[str, object], tokens: int, reason: str) -> None:
    pieces = answer_pieces(asked(**body), 0)

    assert len(pieces) == tokens
    assert pieces[-1].finish_reason == reason
    assert all(piece.finish_reason is None for piece in pieces[:-1])


def test_an_answer_ends_before_a_stop_string() -> None:
    whole = text_of(asked(max_tokens=20))
    stop = whole[30:34]

    pieces = answer_pieces(asked(max_tokens=20, stop=[stop]), 0)

    assert "".join(piece.token.text for piece in pieces) == whole[: whole.index(stop)]
    assert (pieces[-1].finish_reason, pieces[-1].stopped_by) == ("stop", stop)


def test_a_cut_answer_goes_on_as_the_whole_would_have() -> None:
    whole = text_of(asked(max_tokens=20))
    first = text_of(asked(max_tokens=7))
    partial = [*MESSAGES, {"role": "assistant", "content": first}]

    rest = text_of(asked(messages=partial, continue_final_message=True, max_tokens=13))

    assert first + rest == whole


def test_each_choice_is_another_answer() -> None:
    request = asked(n=2, max_tokens=8)

    first, second = (answer_pieces(request, choice) for choice in range(2))

    assert [p.token.text for p in first] != [p.token.text for p in second]
