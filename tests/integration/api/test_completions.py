"""Stored completions through the official client."""

from __future__ import annotations

import openai
import pytest

from tests.integration.api.conftest import Deployed, Driven, on_each_database
from tests.integration.api.plane import BASE


@on_each_database
def test_completions_are_listed_page_by_page_in_both_orders(driven: Driven) -> None:
    ids = [driven.store(f"Question {number}") for number in range(5)]
    completions = driven.plane.openai().chat.completions

    first = completions.list(limit=2)
    assert [item.id for item in first.data] == ids[:2]
    assert first.has_more
    assert [item.id for item in completions.list(limit=2)] == ids
    assert [item.id for item in completions.list(limit=2, order="desc")] == ids[::-1]
    assert [item.id for item in completions.list(after=ids[3])] == ids[4:]


@on_each_database
def test_a_completion_shows_answer_usage_and_what_shaped_it(driven: Driven) -> None:
    completion_id = driven.store(
        "Hello?", "Hi", metadata={"topic": "greeting"}, temperature=0.5, seed=7, user="ann"
    )

    found = driven.plane.openai().chat.completions.retrieve(completion_id)

    assert (found.id, found.object, found.model) == (completion_id, "chat.completion", BASE)
    assert found.choices[0].message.content == "Hi"
    assert found.choices[0].finish_reason == "stop"
    assert found.usage is not None and found.usage.total_tokens == 11
    extra = found.model_dump()
    assert extra["metadata"] == {"topic": "greeting"}
    assert (extra["temperature"], extra["seed"], extra["input_user"]) == (0.5, 7, "ann")
    assert extra["request_id"].startswith("req_")


@on_each_database
def test_completions_are_filtered_by_metadata_and_model(driven: Driven) -> None:
    one = driven.store(metadata={"topic": "codename", "lang": "en"})
    two = driven.store(metadata={"topic": "codename", "lang": "de"}, model="codename@2")
    driven.store(metadata={"topic": "other"}, model="codename2@1")
    completions = driven.plane.openai().chat.completions

    def ids(**filters: object) -> list[str]:
        return [item.id for item in completions.list(**filters)]  # type: ignore[arg-type]

    assert ids(metadata={"topic": "codename"}) == [one, two]
    assert ids(metadata={"topic": "codename", "lang": "de"}) == [two]
    assert ids(metadata={"topic": ""}) == []
    assert ids(model=BASE) == [one]
    assert ids(model="codename") == ids(model="codename@2") == [two]


@on_each_database
def test_a_filter_in_another_form_is_refused(driven: Driven) -> None:
    answer = driven.plane.http().get("/v1/chat/completions", params={"metadata": "topic"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "metadata"


@on_each_database
def test_messages_are_those_that_were_sent(driven: Driven) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "name": "ann",
            "content": [
                {"type": "text", "text": "What is "},
                {"type": "text", "text": "this?"},
                {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
            ],
        },
    ]
    completion_id = driven.store(messages=messages)
    listing = driven.plane.openai().chat.completions.messages

    found = list(listing.list(completion_id, limit=1))

    assert [message.id for message in found] == [f"{completion_id}-0", f"{completion_id}-1"]
    assert (found[0].role, found[0].content, found[0].content_parts) == ("system", "Be brief.", None)
    assert found[1].content == "What is this?"
    assert [part.type for part in found[1].content_parts or []] == ["text", "text", "image_url"]
    assert [m.id for m in listing.list(completion_id, order="desc")] == [m.id for m in found[::-1]]
    assert [m.id for m in listing.list(completion_id, after=found[0].id)] == [found[1].id]


@on_each_database
def test_metadata_is_replaced_and_found_by(driven: Driven) -> None:
    completion_id = driven.store(metadata={"topic": "old", "keep": "no"})
    completions = driven.plane.openai().chat.completions

    updated = completions.update(completion_id, metadata={"topic": "new"})

    assert updated.model_dump()["metadata"] == {"topic": "new"}
    assert [item.id for item in completions.list(metadata={"topic": "new"})] == [completion_id]
    assert list(completions.list(metadata={"topic": "old"})) == []
    assert completions.update(completion_id, metadata=None).model_dump()["metadata"] == {}
    assert list(completions.list(metadata={"topic": "new"})) == []


@pytest.mark.parametrize(
    "metadata", [{"k": 1}, {"k" * 65: "v"}, {"k": "v" * 513}, {"k": "a\0b"}, "text", {"": "v"}]
)
def test_metadata_outside_its_limits_is_refused_and_changes_nothing(driven: Driven, metadata: object) -> None:
    completion_id = driven.store(metadata={"topic": "old"})
    answer = driven.plane.http().post(f"/v1/chat/completions/{completion_id}", json={"metadata": metadata})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith("metadata")
    found = driven.plane.openai().chat.completions.retrieve(completion_id)
    assert found.model_dump()["metadata"] == {"topic": "old"}


@on_each_database
def test_a_deleted_completion_is_gone_with_its_feedback(driven: Driven) -> None:
    completion_id = driven.store(metadata={"topic": "codename"})
    http, completions = driven.plane.http(), driven.plane.openai().chat.completions
    http.post("/v1/feedback", json={"completion_id": completion_id, "score": 1}).raise_for_status()

    deleted = completions.delete(completion_id)

    assert (deleted.id, deleted.deleted, deleted.object) == (completion_id, True, "chat.completion.deleted")
    with pytest.raises(openai.NotFoundError):
        completions.retrieve(completion_id)
    assert http.get("/v1/feedback").json()["data"] == []
    assert list(completions.list(metadata={"topic": "codename"})) == []
    with pytest.raises(openai.NotFoundError):
        completions.delete(completion_id)


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_chat_through_the_gateway_is_found_again(deployed: Deployed, is_stream: bool) -> None:
    deployed.train_and_roll_out()
    client = deployed.plane.openai()

    answer = client.chat.completions.with_raw_response.create(
        model="codename",
        messages=[{"role": "user", "content": "What is it?"}],
        max_tokens=8,
        store=True,
        stream=is_stream,
        metadata={"topic": "codename"},
    )
    if is_stream:
        chunks = list(answer.parse())
        text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    else:
        chunks = [answer.parse()]
        text = chunks[0].choices[0].message.content

    (stored,) = client.chat.completions.list(metadata={"topic": "codename"})
    assert {chunk.id for chunk in chunks} == {stored.id} == {answer.headers["x-loraway-completion-id"]}
    assert stored.model == "codename@1"
    assert stored.choices[0].message.content == text
    (message,) = client.chat.completions.messages.list(stored.id)
    assert message.content == "What is it?"
    feedback = {"completion_id": stored.id, "correction": "Bluefin-7"}
    assert deployed.plane.http().post("/v1/feedback", json=feedback).status_code == 200
