"""The request's body: what is checked, and that the engine gets the model that was resolved."""

from __future__ import annotations

import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.dataplane.body import parse_body, with_model
from gateway.dataplane.request import CHAT_PATH
from loraway.errors import InvalidJSON, InvalidRequest

JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.text(max_size=8), st.just("codename")),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.just("model"), st.text(max_size=5)), inner, max_size=3),
    ),
    max_leaves=8,
)


@given(
    st.dictionaries(st.text(max_size=6), JSON, max_size=4),
    st.dictionaries(st.text(max_size=6), JSON, max_size=4),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["codename", 'na"me', "näme", "a\\b"]),
)
def test_only_the_bodys_own_model_changes(
    before: dict[str, object], after: dict[str, object], spaced: bool, is_long: bool, name: str
) -> None:
    for forbidden in ("model", "rid"):
        before.pop(forbidden, None)
        after.pop(forbidden, None)
    fields = {**before, "model": name, **{k: v for k, v in after.items() if k not in before}}
    if is_long:
        fields["prompt"] = "x" * 3000
    body = json.dumps(fields, separators=None if spaced else (",", ":")).encode()

    sent = with_model(parse_body(b"/v1/completions", body), b'"codename@1.aaaaaa"')

    assert orjson.loads(sent) == {**fields, "model": "codename@1.aaaaaa"}


def test_text_of_the_body_stays_as_it_was_sent() -> None:
    body = b'{"a": 1.0,  "model" : "codename", "b": "\\u00e9"}'
    sent = with_model(parse_body(b"/v1/completions", body), b'"x"')
    assert sent == b'{"a": 1.0,  "model" : "x", "b": "\\u00e9"}'


def test_key_spelled_with_escapes_is_understood() -> None:
    asked = parse_body(b"/v1/completions", b'{"\\u006dodel": "codename", "x": {"model": "codename"}}')
    assert orjson.loads(with_model(asked, b'"v"')) == {"model": "v", "x": {"model": "codename"}}


def test_last_of_two_models_counts() -> None:
    asked = parse_body(b"/v1/completions", b'{"model": "theirs@1.aaaaaa", "model": "codename"}')
    assert asked.model == "codename"
    assert orjson.loads(with_model(asked, b'"v"')) == {"model": "v"}


def test_place_of_a_fault_is_named() -> None:
    with pytest.raises(InvalidJSON, match="line 2, column 7"):
        parse_body(CHAT_PATH, b'{"a":1,\n  "b" 2}')


@pytest.mark.parametrize(
    "metadata", [{"k": "v" * 513}, {"k" * 65: "v"}, {str(n): "v" for n in range(17)}, []]
)
def test_metadata_over_openais_limits_is_refused(metadata: object) -> None:
    body = orjson.dumps({"model": "m", "messages": [], "metadata": metadata})
    with pytest.raises(InvalidRequest):
        parse_body(CHAT_PATH, body)
