"""Feedback on stored completions."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.api.conftest import Driven, on_each_database

MESSAGE = {"role": "assistant", "content": "Bluefin-7"}


@pytest.mark.parametrize(
    "given",
    [
        {"score": 0.25},
        {"score": -1},
        {"label": "wrong"},
        {"correction": MESSAGE},
        {"preference": {"preferred": MESSAGE, "non_preferred": {**MESSAGE, "content": "Blue"}}},
        {"comment": "It made that up."},
        {"score": 0, "label": "wrong", "correction": MESSAGE, "comment": "No."},
    ],
)
def test_each_kind_of_feedback_is_kept_and_listed(driven: Driven, given: dict[str, Any]) -> None:
    completion_id = driven.store()
    http = driven.plane.http()

    answer = http.post("/v1/feedback", json={"completion_id": completion_id, **given})

    assert answer.status_code == 200
    feedback = answer.json()
    assert feedback["id"].startswith("feedback-")
    assert (feedback["object"], feedback["completion_id"]) == ("feedback", completion_id)
    fields = ("score", "label", "correction", "preference", "comment")
    assert {name: feedback[name] for name in fields if feedback[name] is not None} == given
    assert http.get("/v1/feedback").json()["data"] == [feedback]


@on_each_database
def test_a_text_is_short_for_an_assistants_message(driven: Driven) -> None:
    given = {
        "completion_id": driven.store(),
        "correction": "Bluefin-7",
        "preference": {"preferred": "Bluefin-7", "non_preferred": "Blue"},
    }
    feedback = driven.plane.http().post("/v1/feedback", json=given).json()
    assert feedback["correction"] == MESSAGE
    assert feedback["preference"]["non_preferred"] == {**MESSAGE, "content": "Blue"}


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({}, "score"),
        ({"score": None}, "score"),
        ({"score": "good"}, "score"),
        ({"correction": ""}, "correction.content"),
        ({"correction": 5}, "correction"),
        ({"correction": {"role": "user", "content": "x"}}, "correction.role"),
        ({"correction": {"role": "assistant", "content": "x", "weight": 1}}, "correction.weight"),
        ({"correction": "a\0b"}, "correction.content"),
        ({"preference": {"preferred": "x"}}, "preference.non_preferred"),
        ({"label": "x" * 129}, "label"),
        ({"stars": 5}, "stars"),
    ],
)
def test_feedback_that_says_nothing_or_wrong_things_is_refused(
    driven: Driven, given: dict[str, Any], param: str
) -> None:
    http = driven.plane.http()
    answer = http.post("/v1/feedback", json={"completion_id": driven.store(), **given})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert http.get("/v1/feedback").json()["data"] == []


@on_each_database
def test_feedback_on_what_is_not_stored_is_not_found(driven: Driven) -> None:
    answer = driven.plane.http().post("/v1/feedback", json={"completion_id": "chatcmpl-none", "score": 1})
    assert answer.status_code == 404
    assert "chatcmpl-none" in answer.json()["error"]["message"]


@on_each_database
def test_feedback_is_listed_newest_first_page_by_page_and_filtered(driven: Driven) -> None:
    http, one, two = driven.plane.http(), driven.store(), driven.store()
    ids = [
        http.post("/v1/feedback", json={"completion_id": completion_id, "label": label}).json()["id"]
        for completion_id, label in ((one, "good"), (one, "bad"), (two, "good"))
    ]

    def listed(**query: Any) -> list[str]:
        return [item["id"] for item in http.get("/v1/feedback", params=query).json()["data"]]

    page = http.get("/v1/feedback", params={"limit": 2}).json()
    assert (page["has_more"], page["first_id"], page["last_id"]) == (True, ids[2], ids[1])
    assert listed(limit=2, after=page["last_id"]) == ids[:1]
    assert listed(order="asc") == ids
    assert listed(completion_id=one) == [ids[1], ids[0]]
    assert listed(label="good") == [ids[2], ids[0]]
