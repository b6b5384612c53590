"""Base models as folders."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engines.launch.prepare_model import cut_to_two_layers
from loraway.errors import NotFound
from loraway.models import is_prepared, template_sha256

TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


@pytest.fixture
def four_layers(tmp_path: Path) -> Path:
    folder = tmp_path / "four"
    folder.mkdir()
    weights = {
        f"model.layers.{n}.self_attn.q_proj.weight": torch.full((2, 2), float(n)) for n in range(4)
    } | {"model.embed_tokens.weight": torch.ones(3, 2), "model.norm.weight": torch.ones(2)}
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"num_hidden_layers": 4, "vocab_size": 3}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def test_two_layer_model_keeps_the_first_and_the_last_layer(four_layers: Path, tmp_path: Path) -> None:
    target = tmp_path / "models" / "two"

    cut_to_two_layers(four_layers, target)

    weights = load_file(target / "model.safetensors")
    assert set(weights) == {
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.1.self_attn.q_proj.weight",
        "model.embed_tokens.weight",
        "model.norm.weight",
    }
    assert weights["model.layers.0.self_attn.q_proj.weight"].eq(0).all()
    assert weights["model.layers.1.self_attn.q_proj.weight"].eq(3).all()
    assert json.loads((target / "config.json").read_text()) == {"num_hidden_layers": 2, "vocab_size": 3}
    assert is_prepared(target)
    assert template_sha256(target) == template_sha256(four_layers)


def test_nothing_is_left_behind_when_preparing_fails(four_layers: Path, tmp_path: Path) -> None:
    target = tmp_path / "models" / "two"
    target.mkdir(parents=True)
    (target / "something").write_text("in the way")

    with pytest.raises(OSError, match="not empty"):
        cut_to_two_layers(four_layers, target)

    assert [path.name for path in target.parent.iterdir()] == ["two"]


def test_a_folder_without_weights_or_tokenizer_is_not_prepared(four_layers: Path, tmp_path: Path) -> None:
    assert is_prepared(four_layers)
    assert not is_prepared(tmp_path / "nowhere")
    (four_layers / "tokenizer.json").unlink()
    assert not is_prepared(four_layers)


def test_template_hash_is_the_same_wherever_the_model_keeps_its_template(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    in_config = template_sha256(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)

    assert template_sha256(tmp_path) == in_config == hashlib.sha256(TEMPLATE.encode()).hexdigest()


def test_a_model_without_a_template_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="chat template"):
        template_sha256(tmp_path)
