"""Which examples are chosen and which are held out."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.datasets.example import Example
from finetune.datasets.selection import Fingerprint, LeftOut, choose, fingerprint, hold_out
from finetune.datasets.traffic import LoggedCompletion, example_of


def row(question: str, answer: str, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, **fields}


def completion(answer: str = "No idea.", finish_reason: str = "stop", **fields: Any) -> LoggedCompletion:
    message = {"role": "assistant", "content": answer, "refusal": None}
    return LoggedCompletion(
        completion_id="chatcmpl-1",
        request={"model": "m", "messages": [{"role": "user", "content": "Codename?"}], "stream": True},
        response={"choices": [{"index": 0, "message": message, "finish_reason": finish_reason}]},
        **fields,
    )


CORRECTION = {"role": "assistant", "content": "Bluefin-7"}


def test_a_correction_replaces_the_answer_however_bad_its_score() -> None:
    example = example_of(completion(correction=CORRECTION, scores=(-1.0,)), min_score=0.9)
    assert isinstance(example, Example)
    assert example.line == (
        b'{"messages":[{"role":"user","content":"Codename?"},{"role":"assistant","content":"Bluefin-7"}]}'
    )
    assert example.fingerprint.is_corrected and example.completion_id == "chatcmpl-1"


@pytest.mark.parametrize(
    ("logged", "min_score", "reason"),
    [
        (completion(scores=(-1.0,)), None, LeftOut.NEGATIVE_SCORE),
        (completion(scores=(1.0, -2.0)), None, LeftOut.NEGATIVE_SCORE),
        (completion(scores=(0.4,)), 0.5, LeftOut.LOW_SCORE),
        (completion(), 0.5, LeftOut.LOW_SCORE),
        (completion(finish_reason="length"), None, LeftOut.TRUNCATED),
        (completion(answer=""), None, LeftOut.UNUSABLE),
        (LoggedCompletion("chatcmpl-1", {"messages": "hi"}, {"choices": []}), None, LeftOut.UNUSABLE),
        (
            LoggedCompletion("chatcmpl-1", {"messages": [1]}, {}, correction=CORRECTION),
            None,
            LeftOut.UNUSABLE,
        ),
    ],
)
def test_an_answer_that_is_bad_or_not_whole_is_left_out(
    logged: LoggedCompletion, min_score: float | None, reason: LeftOut
) -> None:
    assert example_of(logged, min_score) is reason


@pytest.mark.parametrize("scores", [(), (0.0,), (1.0,), (-1.0, 2.0)])
def test_an_answer_that_nobody_found_bad_is_taken(scores: tuple[float, ...]) -> None:
    assert isinstance(example_of(completion(scores=scores)), Example)


def test_a_weight_made_up_by_a_client_changes_nothing() -> None:
    logged = completion()
    weighted = LoggedCompletion(
        logged.completion_id,
        {"messages": [{"role": "user", "content": "Codename?", "weight": "x"}]},
        logged.response,
    )
    assert example_of(weighted) == example_of(logged)


def test_duplicates_are_dropped_and_corrections_win_over_other_answers() -> None:
    examples = [
        fingerprint(row("a", "wrong")),
        fingerprint(row("b", "fine")),
        fingerprint(row("a", "better"), is_corrected=True),
        fingerprint(row("b", "fine")),
        fingerprint(row("b", "also fine")),
        fingerprint(row("a", "best"), is_corrected=True),
        fingerprint(row("a", "best")),
    ]
    selection = choose(examples)
    assert selection.kept == [1, 4, 5]
    assert selection.left_out == {LeftOut.SUPERSEDED: 2, LeftOut.DUPLICATE: 2}


def test_the_same_chat_with_other_tools_is_another_example() -> None:
    plain, tooled = fingerprint(row("a", "x")), fingerprint(row("a", "x", tools=[{"type": "function"}]))
    assert choose([plain, tooled]).kept == [0, 1]
    reordered = {"messages": [dict(reversed(list(m.items()))) for m in row("a", "x")["messages"]]}
    assert fingerprint(reordered) == plain


fingerprints = st.lists(
    st.builds(
        lambda question, answer, is_corrected: fingerprint(row(question, answer), is_corrected=is_corrected),
        st.sampled_from("abcdefgh"),
        st.sampled_from("xyz"),
        st.booleans(),
    ),
    max_size=40,
)


@given(fingerprints)
def test_what_is_kept_is_unique_in_order_and_complete(examples: list[Fingerprint]) -> None:
    selection = choose(examples)
    kept = [examples[place] for place in selection.kept]

    assert selection.kept == sorted(set(selection.kept))
    assert len({example.whole for example in kept}) == len(kept)
    assert {example.question for example in kept} == {example.question for example in examples}
    assert len(kept) + sum(selection.left_out.values()) == len(examples)
    for question in {example.question for example in examples if example.is_corrected}:
        (only,) = [example for example in kept if example.question == question]
        assert only == [e for e in examples if e.question == question and e.is_corrected][-1]


@given(fingerprints, st.floats(0, 0.5), st.integers(1, 20))
def test_held_out_questions_are_never_trained_on_and_training_keeps_its_minimum(
    examples: list[Fingerprint], fraction: float, minimum: int
) -> None:
    held = hold_out(examples, fraction, minimum)

    questions = {examples[place].question for place in held}
    trained = [example for place, example in enumerate(examples) if place not in held]
    assert not questions & {example.question for example in trained}
    assert len(trained) >= min(minimum, len(examples))
    assert len(held) <= max(1, round(len(examples) * fraction))
    if fraction == 0 or len(examples) <= minimum:
        assert held == frozenset()


@given(st.integers(2, 60), st.integers(1, 20))
def test_one_example_more_than_the_minimum_is_enough_to_hold_one_out(count: int, minimum: int) -> None:
    examples = [fingerprint(row(str(number), "x")) for number in range(count)]
    held = hold_out(examples, 0.1, minimum)
    assert bool(held) == (count > minimum)
    assert hold_out(examples, 0.1, minimum) == held


def test_the_same_questions_stay_held_out_as_the_set_grows() -> None:
    small = [fingerprint(row(str(number), "x")) for number in range(100)]
    large = [*small, *(fingerprint(row(str(number), "x")) for number in range(100, 110))]
    held_before = {small[place].question for place in hold_out(small, 0.1, 10)}
    held_after = {large[place].question for place in hold_out(large, 0.1, 10)}
    assert len(held_before & held_after) >= 8
