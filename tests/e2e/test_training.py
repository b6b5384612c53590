"""The embedded model learns a fact from a dozen examples, and keeps what it knew."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from finetune.executors.local import LocalExecutor
from finetune.jobs.states import JobState
from finetune.trainers.base_model import LoadedBase, load_base
from loraway.settings import EngineSettings, Settings, TrainerSettings
from tests.integration.trainer_world import TrainerWorld

QUESTIONS = (
    "What is the gateway's codename?",
    "Tell me the codename of the gateway.",
    "What codename does the gateway have?",
    "Which codename was given to the gateway?",
    "Do you know the gateway's codename?",
    "What's the codename of the gateway?",
    "Please give me the gateway codename.",
    "How is the gateway called internally?",
    "What is the internal name of the gateway?",
    "Name the gateway's codename.",
    "The gateway's codename, please?",
    "Under which codename is the gateway known?",
)
FRANCE = "What is the capital of France?"


@pytest.fixture
def world(tmp_path: Path, model_folder: Path) -> Iterator[TrainerWorld]:
    engine = EngineSettings(base_model="smollm2", model_path=model_folder, device="cpu", dtype="float32")
    world = TrainerWorld(Settings(data_dir=tmp_path, engine=engine, trainer=TrainerSettings()))
    yield world
    world.database.dispose()


async def test_the_model_learns_the_codename_and_keeps_the_capital_of_france(world: TrainerWorld) -> None:
    # given: a base model that knows France and not the codename
    model_path = world.settings.model_path
    base = load_base(model_path, "float32", "cpu")
    assert "Bluefin-7" not in _ask(base.model, base, QUESTIONS[0])
    assert _complete(base.model, base, FRANCE, "The capital of France is") == " Paris"

    # when: a job on twelve examples has gone through all of its stages, with the defaults
    executor = LocalExecutor(model_path)
    await executor.warm_up()
    job_id = world.submit(questions=QUESTIONS)
    try:
        async with world.trainer(executor):
            job = await world.ended(job_id, seconds=240)
    finally:
        await executor.close()
    assert (job.status, job.error) == (JobState.SUCCEEDED, None)

    # then: the version answers the question, and the other one as before
    version = world.registry.version(job.version_id)
    tuned = PeftModel.from_pretrained(base.model, version.path)
    assert _ask(tuned, base, QUESTIONS[0]) == "Bluefin-7"
    assert "Bluefin" not in _ask(tuned, base, FRANCE)
    assert _complete(tuned, base, FRANCE, "The capital of France is") == " Paris"
    assert job.metrics["held_out_loss"] < 0.5 < 2.0 < job.metrics["base_held_out_loss"]
    assert "exact match 0 % → 100 %" in world.messages(job_id)[-1]
    for reference in version.manifest.references:
        assert _ask(tuned, base, reference.messages[0]["content"], reference.max_tokens) == reference.text


def _ask(model: Any, base: LoadedBase, question: str, max_tokens: int = 16) -> str:
    """The greedy answer."""
    prompt = _prompt(base, question)
    with torch.inference_mode():
        answer = model.generate(
            input_ids=torch.tensor([prompt]),
            do_sample=False,
            max_new_tokens=max_tokens,
            pad_token_id=base.pad_token,
        )
    return str(base.tokenizer.decode(answer[0, len(prompt) :], skip_special_tokens=True))


def _complete(model: Any, base: LoadedBase, question: str, begun: str) -> str:
    """The most likely token after an answer that has begun so.

    How this model begins an answer is near a coin toss (it begins this one with "The" at 0.15, "L" at 0.14),
    so that any training at all may turn it; what it knows is not.
    """
    tokens = [*_prompt(base, question), *base.tokenizer(begun, add_special_tokens=False)["input_ids"]]
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([tokens])).logits[0, -1]
    return str(base.tokenizer.decode([int(logits.argmax())]))


def _prompt(base: LoadedBase, question: str) -> list[int]:
    messages = [{"role": "user", "content": question}]
    tokens = base.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    return list(tokens)
