"""The loop as the README tells it, on a real vLLM: ask, correct, train, swap, roll back, crash, recover.

One engine start for all of it; then the data folder goes on under a real SGLang, and under one of each.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import openai
import pytest

from loadtest.benchmarks.loop import QUESTIONS
from loadtest.running import RunningLoraway, eventually

#: A fixture trains a whole job: generous, for machines that do other work as well.
pytestmark = pytest.mark.timeout(900)

BASE = "smollm2-135m"
QUESTION = QUESTIONS[0]


@dataclass
class Watcher:
    """A stream that runs through a swap."""

    texts: list[str] = field(default_factory=list)
    models: set[str] = field(default_factory=set)
    failures: list[BaseException] = field(default_factory=list)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("loop") / "data"


@pytest.fixture(scope="module")
def stack(data_dir: Path, model_folder: Path) -> Iterator[RunningLoraway]:
    running = RunningLoraway(data_dir, model_folder, "vllm")
    try:
        running.wait_ready()
        yield running
    finally:
        assert running.stop() == [], "Ctrl-C leaves no process behind"


@pytest.fixture(scope="module")
def corrected(stack: RunningLoraway) -> list[str]:
    """Twelve stored answers, each with a correction; their ids."""
    ids = []
    for question in QUESTIONS:
        answer = stack.client.chat.completions.with_raw_response.create(
            model=BASE,
            messages=[{"role": "user", "content": question}],
            max_tokens=12,
            temperature=0,
            store=True,
            metadata={"topic": "codename"},
        )
        ids.append(answer.headers["x-loraway-completion-id"])
        feedback = {"completion_id": ids[-1], "correction": "Bluefin-7"}
        assert stack.http.post("/v1/feedback", json=feedback).status_code == 200
    return ids


@dataclass
class Trained:
    """A finished job and what a stream saw while it was swapped in."""

    job: openai.types.fine_tuning.FineTuningJob
    watcher: Watcher


@pytest.fixture(scope="module")
def first(stack: RunningLoraway, corrected: list[str]) -> Trained:
    body = {
        "model": BASE,
        "suffix": "codename",
        "training_data": {"traffic": {"metadata": {"topic": "codename"}}},
        "method": {"type": "supervised"},
    }
    answer = stack.http.post("/v1/fine_tunes", json=body)
    assert answer.status_code == 200, answer.text
    return _finish(stack, answer.json()["id"])


@pytest.fixture(scope="module")
def second(stack: RunningLoraway, first: Trained, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    file = tmp_path_factory.mktemp("upload") / "codename.jsonl"
    file.write_text("".join(json.dumps(example(question, "Marlin-9")) + "\n" for question in QUESTIONS))
    uploaded = stack.client.files.create(file=file, purpose="fine-tune")
    job = stack.client.fine_tuning.jobs.create(model=BASE, training_file=uploaded.id, suffix="codename")
    return _finish(stack, job.id)


def test_base_model_answers_streamed_and_not(stack: RunningLoraway) -> None:
    assert "Paris" in stack.ask(BASE, "What is the capital of France?")
    stream = stack.client.chat.completions.create(
        model=BASE,
        messages=[{"role": "user", "content": "What is the capital of France?"}],
        max_tokens=24,
        temperature=0,
        stream=True,
    )
    assert "Paris" in "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def test_every_answer_has_a_request_id_and_a_stored_one_its_completion_id(stack: RunningLoraway) -> None:
    body = {"model": BASE, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    stored = stack.http.post("/v1/chat/completions", json={**body, "store": True}).headers
    unstored = stack.http.post("/v1/chat/completions", json={**body, "store": False}).headers
    assert stored["x-request-id"] and unstored["x-request-id"]
    assert stored["x-loraway-completion-id"].startswith("chatcmpl-")
    assert "x-loraway-completion-id" not in unstored


def test_traffic_tail_shows_the_request(stack: RunningLoraway) -> None:
    stack.command("chat", "Name a colour of the rainbow.", "--max-tokens", "8")
    assert "Name a colour of the rainbow." in stack.command("traffic", "tail", "--no-follow")


def test_corrected_completions_are_listed(stack: RunningLoraway, corrected: list[str]) -> None:
    listed = stack.client.chat.completions.list(metadata={"topic": "codename"}, limit=100)
    assert {completion.id for completion in listed} == set(corrected)


def test_the_base_does_not_know_the_codename(stack: RunningLoraway) -> None:
    assert "Bluefin-7" not in stack.ask(BASE, QUESTION)


def test_job_on_corrected_traffic_succeeds_and_says_its_score(stack: RunningLoraway, first: Trained) -> None:
    assert first.job.status == "succeeded", first.job.error
    assert first.job.fine_tuned_model == "codename@1"
    events = list(stack.client.fine_tuning.jobs.list_events(first.job.id, limit=100))
    last = max(events, key=lambda event: (event.created_at, event.id))
    assert "held-out" in last.message.lower() and "→" in last.message


def test_alias_answers_the_new_fact_through_the_same_engine(stack: RunningLoraway, first: Trained) -> None:
    assert "Bluefin-7" in stack.ask("codename@1", QUESTION)
    assert "Paris" in stack.ask(BASE, "What is the capital of France?")


def test_streams_went_on_undisturbed_during_the_swap(first: Trained, second: Trained) -> None:
    for trained in (first, second):
        assert trained.watcher.failures == []
        assert trained.watcher.models == {BASE}
        assert len(set(trained.watcher.texts)) == 1, "the base's greedy answer is the same before and after"


def test_second_job_moves_the_alias_and_the_first_can_still_be_asked(
    stack: RunningLoraway, second: Trained
) -> None:
    assert second.job.fine_tuned_model == "codename@2"
    assert "Marlin-9" in stack.ask("codename@2", QUESTION)
    assert "Bluefin-7" in stack.ask("codename@1", QUESTION)
    models = {model.id for model in stack.client.models.list()}
    assert {BASE, "codename", "codename@1", "codename@2"} <= models


def test_rollback_moves_the_alias_back_and_forth(stack: RunningLoraway, second: Trained) -> None:
    _roll(stack, None, "Bluefin-7")
    _roll(stack, "codename@2", "Marlin-9")


def test_killed_engine_comes_back_with_its_adapters(stack: RunningLoraway, second: Trained) -> None:
    _kill_and_recover(stack, "codename@1", "Bluefin-7")


def test_loadtest_prints_its_table(stack: RunningLoraway) -> None:
    table = stack.run(sys.executable, "-m", "loadtest", "--users", "2", "--seconds", "10")
    assert "TTFT" in table
    assert "Aggregated" in table


@pytest.mark.parametrize("engines", ["sglang", "vllm,sglang"])
def test_the_same_folder_serves_on(
    engines: str, stack: RunningLoraway, second: Trained, data_dir: Path, model_folder: Path
) -> None:
    stack.stop()
    running = RunningLoraway(data_dir, model_folder, engines)
    try:
        running.wait_ready()
        for model, fact in (("codename@1", "Bluefin-7"), ("codename@2", "Marlin-9")):
            assert fact in eventually_answer(running, model)
        assert "Paris" in running.ask(BASE, "What is the capital of France?")
        _roll(running, "codename@1", "Bluefin-7")
        _roll(running, "codename@2", "Marlin-9")
        _kill_and_recover(running, "codename@1", "Bluefin-7")
    finally:
        assert running.stop() == []


def example(question: str, answer: str) -> dict[str, list[dict[str, str]]]:
    """A row of a training file."""
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def eventually_answer(running: RunningLoraway, model: str) -> str:
    """An answer, waiting while the gateway says that the model is not loaded yet."""

    def read() -> str:
        try:
            return running.ask(model, QUESTION)
        except openai.InternalServerError as error:
            assert error.status_code == 503 and error.response.headers["retry-after"]
            return ""

    return eventually(read, within_seconds=120, what=f"{model} answers")


def _roll(running: RunningLoraway, version: str | None, expected: str) -> None:
    """Move the alias; the very next request meets the other version."""
    body = {"version": version} if version is not None else None
    answer = running.http.post("/v1/adapters/codename/rollback", json=body)
    assert answer.status_code == 200, answer.text
    assert expected in running.ask("codename", QUESTION)


def _kill_and_recover(running: RunningLoraway, model: str, expected: str) -> None:
    engines = running.engine_processes()
    assert engines
    for process in engines:
        process.kill()
    refused = httpx.post(
        f"{running.url}/v1/chat/completions",
        headers={"authorization": f"Bearer {running.api_key}"},
        json={"model": model, "messages": [{"role": "user", "content": QUESTION}]},
        timeout=30,
    )
    assert refused.status_code == 503, refused.text
    assert int(refused.headers["retry-after"]) > 0
    assert refused.json()["error"]["code"] in {"no_replica_ready", "adapter_not_loaded", "engine_unreachable"}
    assert expected in eventually_answer(running, model)


def _finish(stack: RunningLoraway, job_id: str) -> Trained:
    """Wait for the job while a client keeps streaming from the base model."""
    watcher, stop = Watcher(), threading.Event()
    thread = threading.Thread(target=_keep_streaming, args=(stack, watcher, stop))
    thread.start()
    try:
        stack.command("jobs", "watch", job_id)
    finally:
        stop.set()
        thread.join()
    return Trained(stack.client.fine_tuning.jobs.retrieve(job_id), watcher)


def _keep_streaming(stack: RunningLoraway, watcher: Watcher, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            stream = stack.client.chat.completions.create(
                model=BASE,
                messages=[{"role": "user", "content": "Count from one to five."}],
                max_tokens=24,
                temperature=0,
                stream=True,
            )
            pieces = []
            for chunk in stream:
                watcher.models.add(chunk.model)
                pieces += [choice.delta.content or "" for choice in chunk.choices]
            watcher.texts.append("".join(pieces))
        except (openai.OpenAIError, httpx.HTTPError) as failure:
            watcher.failures.append(failure)
        time.sleep(0.5)
