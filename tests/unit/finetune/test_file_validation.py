"""Each line of a training file is judged alone, whatever chunks the file arrives in."""

from __future__ import annotations

import io
import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.file_validation import (
    REPORTED_LINES,
    FileReport,
    FileValidator,
    InvalidExample,
    LineSplitter,
    check_example,
    read_examples,
)

QUESTION = {"role": "user", "content": "What is the codename?"}
ANSWER = {"role": "assistant", "content": "Bluefin-7"}
GOOD = json.dumps({"messages": [QUESTION, ANSWER]}).encode()


def report_on(*chunks: bytes, max_line_bytes: int = 1000) -> FileReport:
    validator = FileValidator(max_line_bytes)
    for chunk in chunks:
        validator.feed(chunk)
    return validator.finish()


def chat(*messages: object, **fields: object) -> dict[str, Any]:
    return {"messages": list(messages), **fields}


@pytest.mark.parametrize(
    "example",
    [
        chat(QUESTION, ANSWER),
        chat({"role": "system", "content": "Be brief."}, QUESTION, ANSWER, QUESTION, ANSWER),
        chat(QUESTION, {**ANSWER, "weight": 0}, QUESTION, {**ANSWER, "weight": 1}),
        chat({"role": "user", "content": [{"type": "text", "text": "Hello"}]}, ANSWER),
        chat(QUESTION, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}, tools=[{}]),
        chat(QUESTION, ANSWER, parallel_tool_calls=False),
    ],
)
def test_a_chat_that_can_be_learnt_from_is_taken(example: dict[str, Any]) -> None:
    check_example(example)


@pytest.mark.parametrize(
    ("example", "reason"),
    [
        ({}, "'messages' is missing"),
        ({"prompt": "a", "completion": "b"}, "prompt/completion form"),
        (chat(), "at least one message"),
        ({"messages": "hi"}, "must be a list"),
        (chat("hi", ANSWER), r"messages\[0\] must be an object, not a string"),
        (chat({"role": "robot", "content": "x"}, ANSWER), r"messages\[0\].role is 'robot'"),
        (chat({"content": "x"}, ANSWER), r"messages\[0\].role is 'None'"),
        (chat({"role": ["user"], "content": "x"}, ANSWER), r"messages\[0\].role"),
        (chat({"role": "user", "content": " "}, ANSWER), r"messages\[0\].content is empty"),
        (chat({"role": "user"}, ANSWER), r"messages\[0\].content is missing"),
        (chat({"role": "user", "content": 7}, ANSWER), r"messages\[0\].content must be text, not a number"),
        (
            chat({"role": "user", "content": [{"type": "image_url"}]}, ANSWER),
            r"content\[0\] must be a text part",
        ),
        (chat(QUESTION, {"role": "assistant", "content": ""}), r"messages\[1\].content is empty"),
        (chat(QUESTION), "last message must be the assistant's, not 'user'"),
        (chat(ANSWER), "no message before"),
        (chat(QUESTION, {**ANSWER, "weight": 2}), r"messages\[1\].weight is 2; it must be 0 or 1"),
        (chat(QUESTION, {**ANSWER, "weight": True}), "weight is True"),
        (chat({**QUESTION, "weight": 1}, ANSWER), "only assistant messages have a weight"),
        (chat(QUESTION, {**ANSWER, "weight": 0}), "nothing to learn"),
        (chat(QUESTION, ANSWER, tools={}), "'tools' must be a list of objects"),
        (chat(QUESTION, {**ANSWER, "tool_calls": [1]}), "tool_calls must be a list of objects"),
    ],
)
def test_a_chat_that_cannot_be_learnt_from_is_refused_with_the_place(
    example: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InvalidExample, match=reason):
        check_example(example)


def test_bad_lines_are_reported_with_their_numbers_and_the_place_inside() -> None:
    report = report_on(GOOD + b"\n\n" + b'{"messages": [}\n' + b"[1]\n" + b"\xff\xfe\x00\n" + GOOD)

    assert report.example_count == 2 and report.bad_line_count == 3 and not report.is_valid
    assert [bad.number for bad in report.bad_lines] == [3, 4, 5]
    reasons = [bad.reason for bad in report.bad_lines]
    assert reasons[0].startswith("not JSON at column 15")
    assert reasons[1] == "must be an object with 'messages', not a list"
    assert reasons[2].startswith("not UTF-8 at byte 1")
    assert report.summary.splitlines()[0] == "3 lines are not valid:"
    assert "line 4: must be an object" in report.summary


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_every_line_end_counts_as_one(end: bytes) -> None:
    report = report_on(GOOD + end + end + b"nonsense" + end + GOOD + end)
    assert report.example_count == 2
    assert [bad.number for bad in report.bad_lines] == [3]


def test_a_byte_order_mark_is_no_error_and_utf16_is_named() -> None:
    assert report_on(b"\xef\xbb\xbf" + GOOD).is_valid
    assert list(read_examples(io.BytesIO(b"\xef\xbb\xbf" + GOOD))) == [json.loads(GOOD)]
    assert "UTF-16" in report_on(GOOD.decode().encode("utf-16")).bad_lines[0].reason


@pytest.mark.parametrize("content", [b"", b"\n\n", b"  \r\n"])
def test_a_file_without_examples_is_not_valid(content: bytes) -> None:
    report = report_on(content)
    assert not report.is_valid and report.summary == "The file holds no examples."


def test_a_line_over_the_limit_is_reported_without_being_kept() -> None:
    validator = FileValidator(max_line_bytes=100)
    for _ in range(1000):
        validator.feed(b"x" * 1000)
        assert len(validator._splitter._pending) <= 100
    validator.feed(b"\n" + b'{"messages": 1}' + b"\n" + b"y" * 101)
    report = validator.finish()

    assert [bad.number for bad in report.bad_lines] == [1, 2, 3]
    assert report.bad_lines[0].reason == "longer than 100 bytes; split the example"
    assert report.bad_lines[2].reason == "longer than 100 bytes; split the example"


def test_only_the_first_bad_lines_are_listed_and_the_rest_counted() -> None:
    report = report_on(b"nonsense\n" * (REPORTED_LINES + 5))
    assert len(report.bad_lines) == REPORTED_LINES and report.bad_line_count == REPORTED_LINES + 5
    assert report.summary.endswith("... and 5 more")


@given(
    st.lists(st.sampled_from([GOOD, b"", b" ", b"nonsense", b"\xff", b"x" * 1001]), max_size=12),
    st.lists(st.sampled_from([b"\n", b"\r\n", b"\r"]), min_size=12, max_size=12),
    st.lists(st.integers(0, 4000), max_size=10),
)
def test_the_verdict_does_not_depend_on_how_the_file_is_cut_into_chunks(
    lines: list[bytes], ends: list[bytes], cuts: list[int]
) -> None:
    content = b"".join(line + end for line, end in zip(lines, ends, strict=False))
    places = [0, *sorted(min(cut, len(content)) for cut in cuts), len(content)]
    chunks = [content[start:stop] for start, stop in itertools.pairwise(places)]

    report = report_on(*chunks)

    assert report == report_on(content)
    assert report.example_count == lines.count(GOOD)
    # A "\r" before a blank line that ends in "\n" reads as one line end: the same in one piece.
    splitter = LineSplitter(1000)
    whole = [line for chunk in (content, b"") for line in splitter.feed(chunk)] + list(splitter.finish())
    assert [None if len(line) > 1000 else line for line in content.splitlines()] == whole


@given(st.binary(max_size=300))
def test_any_bytes_at_all_give_a_report(content: bytes) -> None:
    report = report_on(content)
    assert report.bad_line_count + report.example_count <= len(content.splitlines())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["messages", "role", "content", "weight", "type", "text", "tools", "tool_calls"]),
            inner | st.sampled_from(["user", "assistant", "text"]),
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(json_values)
def test_any_json_at_all_is_taken_or_refused_with_a_reason(value: object) -> None:
    report = report_on(json.dumps(value).encode() + b"\n")
    assert report.example_count + report.bad_line_count == 1
