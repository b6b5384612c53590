"""`/v1/models`: what may go into `model`, in OpenAI's shape and vLLM's."""

from __future__ import annotations

import openai
import pytest

from tests.integration.api.conftest import Deployed, Driven
from tests.integration.api.plane import BASE, add_replica


def test_a_base_model_is_listed_as_its_own_root(driven: Driven) -> None:
    client = driven.plane.openai()
    assert [model.id for model in client.models.list()] == [BASE]
    model = client.models.retrieve(BASE)
    assert (model.object, model.owned_by) == ("model", "loraway")
    extra = model.model_dump()
    assert (extra["root"], extra["parent"], extra["max_model_len"]) == (BASE, None, 2048)


def test_a_base_model_that_only_a_replica_knows_is_listed(driven: Driven) -> None:
    add_replica(driven.plane.parts.database, base_model="remote-model")
    models = {model.id: model for model in driven.plane.openai().models.list()}
    assert set(models) == {BASE, "remote-model"}
    assert models["remote-model"].created == 1


def test_an_adapter_has_the_version_that_answers_as_root_and_the_base_as_parent(deployed: Deployed) -> None:
    deployed.train_and_roll_out()
    deployed.train_and_roll_out()
    client = deployed.plane.openai()

    models = {model.id: model.model_dump() for model in client.models.list()}

    assert list(models) == [BASE, "codename", "codename@1", "codename@2"]
    assert {name: (model["root"], model["parent"]) for name, model in models.items()} == {
        BASE: (BASE, None),
        "codename": ("codename@2", BASE),
        "codename@1": ("codename@1", BASE),
        "codename@2": ("codename@2", BASE),
    }
    assert models["codename"]["owned_by"] == deployed.plane.mine.project_id
    assert client.models.retrieve("codename@1").id == "codename@1"


def test_an_unknown_model_is_not_found_and_names_those_that_come_near(driven: Driven) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        driven.plane.openai().models.retrieve("smolm2-135m")
    assert caught.value.code == "model_not_found"
    assert BASE in caught.value.message
