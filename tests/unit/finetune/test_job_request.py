"""What a job may ask for, in OpenAI's old form and new."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.jobs.request import JobRequest
from finetune.trainers.spec import BASE_LEARNING_RATE
from loraway.errors import InvalidRequest, UnknownHyperparameter

BODY = {"model": "smollm2-135m", "training_file": "file-1", "suffix": "codename"}


def parse(**fields: Any) -> JobRequest:
    return JobRequest.from_body({**BODY, **fields}, max_lora_rank=32)


def supervised(**values: Any) -> dict[str, Any]:
    return {"type": "supervised", "supervised": {"hyperparameters": values}}


def test_the_old_form_and_the_new_form_mean_the_same() -> None:
    values = {"n_epochs": 3, "batch_size": "auto", "learning_rate_multiplier": 0.5}
    old, new = parse(hyperparameters=values), parse(method=supervised(**values))
    assert old == new
    assert old.resolve(100).n_epochs == 3


def test_what_is_left_out_or_null_or_auto_is_chosen() -> None:
    bare = parse()
    nulls = parse(hyperparameters=None, method=None, seed=None, validation_file=None, metadata=None)
    autos = parse(hyperparameters={"n_epochs": "auto", "batch_size": "auto", "lora_rank": "auto"})
    assert bare == nulls
    assert bare.resolve(12) == autos.resolve(12)


def test_a_dozen_examples_get_enough_steps_to_learn_a_fact_and_many_get_fewer_epochs() -> None:
    few, many = parse().resolve(11), parse().resolve(5000)
    steps = few.n_epochs * -(-11 // few.batch_size)
    assert 10 <= steps <= 16
    assert (few.learning_rate, few.lora_rank, few.lora_alpha) == (BASE_LEARNING_RATE, 16, 32)
    assert many.n_epochs < few.n_epochs and many.batch_size == 8


def test_hyperparameters_given_are_used_under_either_name() -> None:
    chosen = parse(
        hyperparameters={
            "rank": 8,
            "alpha": 8,
            "dropout": 0.1,
            "learning_rate": 1e-4,
            "seed": 7,
            "max_length": 64,
        }
    )
    values = chosen.resolve(50)
    assert (values.lora_rank, values.lora_alpha, values.lora_dropout) == (8, 8, 0.1)
    assert values.learning_rate == 1e-4
    assert chosen.seed == 7 and parse(seed=3, hyperparameters={"seed": 7}).seed == 3
    assert chosen.max_length(2048) == 64 and parse().max_length(2048) == 2048
    assert parse(hyperparameters={"held_out_fraction": 0}).held_out_fraction(0.1) == 0.0
    assert parse(hyperparameters={"rank": 8}).resolve(50).lora_alpha == 16


def test_a_stored_request_reads_back_the_same() -> None:
    traffic = {"metadata": {"topic": "codename"}, "min_score": 0.5, "after": 1.0}
    body = {"model": "smollm2-135m", "training_data": {"traffic": traffic}, "metadata": {"a": "b"}}
    request = JobRequest.from_body(body, max_lora_rank=32)
    assert JobRequest.model_validate(request.model_dump(mode="json", exclude_none=True)) == request
    assert request.suffix == "ft-smollm2-135m"


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"training_file": None}, "training_file", "either training_file or training_data"),
        ({"training_data": {"traffic": {}}}, "training_file", "either training_file or training_data"),
        ({"training_data": {"traffic": {"metdata": {}}}}, "training_data.traffic.metdata", "unknown field"),
        ({"training_file": "../../etc/passwd"}, "training_file", "match pattern"),
        ({"model": None}, "model", "required"),
        ({"model": 5}, "model", "valid string"),
        ({"suffix": "My Bot"}, "suffix", "not a valid adapter name"),
        ({"suffix": "a:b"}, "suffix", "not a valid adapter name"),
        ({"method": {"type": "dpo"}}, "method.type", "supported methods: 'supervised'"),
        ({"method": "supervised"}, "method", "must be an object"),
        ({"method": {"type": "supervised", "dpo": {}}}, "method.dpo", "Unknown field"),
        ({"method": supervised(n_epochs=1), "hyperparameters": {"n_epochs": 2}}, None, "not both"),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs", "greater than or equal to 1"),
        ({"hyperparameters": {"n_epochs": 1.5}}, "hyperparameters.n_epochs", "valid integer"),
        ({"hyperparameters": {"n_epochs": True}}, "hyperparameters.n_epochs", "valid integer"),
        (
            {"method": supervised(learning_rate=7)},
            "method.supervised.hyperparameters.learning_rate",
            "less than or equal to 1",
        ),
        ({"hyperparameters": {"learning_rate": 1e-3, "learning_rate_multiplier": 2}}, None, "not both"),
        ({"hyperparameters": {"lora_rank": 64}}, "hyperparameters.lora_rank", "at most 32"),
        ({"seed": -1}, "seed", "greater than or equal to 0"),
        ({"metadata": {"a": 1}}, "metadata.a", "valid string"),
        ({"integrations": [{"type": "wandb"}]}, "integrations", "not supported"),
        ({"trainig_file": "file-1"}, "trainig_file", "unknown field"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused_with_its_place(
    fields: dict[str, Any], param: str | None, message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        parse(**fields)
    if param is not None:
        assert caught.value.param == param


def test_an_unknown_hyperparameter_is_answered_with_near_names() -> None:
    with pytest.raises(UnknownHyperparameter, match="Did you mean 'lora_rank'") as caught:
        parse(hyperparameters={"lora_rnak": 8})
    assert caught.value.param == "hyperparameters.lora_rnak"
    with pytest.raises(UnknownHyperparameter, match="Known: n_epochs"):
        parse(method=supervised(zzz=8))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*JobRequest.model_fields, "integrations"]), json_values))
def test_any_body_at_all_is_taken_or_refused_as_a_bad_request(fields: dict[str, Any]) -> None:
    try:
        request = JobRequest.from_body({**BODY, **fields}, max_lora_rank=32)
    except InvalidRequest as error:
        assert error.message
    else:
        request.resolve(20)
