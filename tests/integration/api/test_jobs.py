"""Fine-tuning jobs through the official client, with the real queue."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from finetune.datasets.dataset import Dataset
from finetune.datasets.snapshot import DatasetStore
from finetune.jobs.job import Failed, Job, JobError, Progress, Succeeded
from finetune.jobs.states import JobStage
from loraway.ids import VersionId
from tests.integration.api.conftest import Driven, on_each_database
from tests.integration.api.plane import BASE, training_file

TRAFFIC = {"traffic": {"metadata": {"topic": "codename"}}}


def upload(driven: Driven, examples: int = 12) -> str:
    client = driven.plane.openai()
    return client.files.create(file=training_file(examples), purpose="fine-tune").id


def dataset_of(driven: Driven, job: Job) -> Dataset:
    parts = driven.plane.parts
    folder = parts.settings.blobs_dir / "datasets"
    return DatasetStore(parts.database, parts.files, folder, parts.settings.trainer).build(job)


@on_each_database
def test_a_job_on_a_file_is_queued_in_openais_shape(driven: Driven) -> None:
    client, file_id = driven.plane.openai(), upload(driven)

    job = client.fine_tuning.jobs.create(
        model=BASE,
        training_file=file_id,
        suffix="codename",
        seed=5,
        metadata={"team": "a"},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
    )

    assert (job.object, job.status, job.model) == ("fine_tuning.job", "queued", BASE)
    assert (job.training_file, job.validation_file, job.seed) == (file_id, None, 5)
    assert job.metadata == {"team": "a"}
    assert (job.hyperparameters.n_epochs, job.hyperparameters.batch_size) == (2, "auto")
    assert job.method is not None and job.method.supervised is not None
    assert job.method.supervised.hyperparameters is not None
    assert job.method.supervised.hyperparameters.n_epochs == 2
    assert (job.error, job.fine_tuned_model, job.finished_at, job.trained_tokens) == (None,) * 4
    assert (job.result_files, job.organization_id) == ([], driven.plane.mine.project_id)
    assert client.fine_tuning.jobs.retrieve(job.id) == job
    assert job.model_dump()["user_provided_suffix"] == "codename"


@on_each_database
def test_a_job_on_corrected_traffic_is_queued_under_either_path(driven: Driven) -> None:
    http = driven.plane.http()
    for number in range(12):
        completion_id = driven.store(f"{number}?", metadata={"topic": "codename"})
        feedback = {"completion_id": completion_id, "correction": "Bluefin-7"}
        http.post("/v1/feedback", json=feedback).raise_for_status()
    body = {"model": BASE, "suffix": "codename", "training_data": TRAFFIC, "method": {"type": "supervised"}}

    jobs = [http.post(path, json=body).json() for path in ("/v1/fine_tunes", "/v1/fine_tuning/jobs")]

    assert [job["status"] for job in jobs] == ["queued", "queued"]
    assert jobs[0]["training_file"] is None
    assert jobs[0]["training_data"]["traffic"]["metadata"] == {"topic": "codename"}
    listed = [http.get(path).json() for path in ("/v1/fine_tunes", "/v1/fine_tuning/jobs")]
    assert listed[0] == listed[1]
    assert [job["id"] for job in listed[0]["data"]] == [jobs[1]["id"], jobs[0]["id"]]


@on_each_database
def test_events_and_checkpoints_tell_a_jobs_story(driven: Driven) -> None:
    client, store = driven.plane.openai(), driven.plane.parts.jobs
    job = client.fine_tuning.jobs.create(model=BASE, training_file=upload(driven), suffix="codename")
    leased = store.claim("trainer")
    assert leased is not None
    store.set_stage(leased.lease, JobStage.TRAINING)
    dataset = dataset_of(driven, leased.job)
    store.set_dataset(leased.lease, dataset.dataset_id, {"n_epochs": 7, "learning_rate": 0.001})
    store.progress(leased.lease, Progress(step=1, total_steps=2, loss=1.5, seconds_left=9.0))
    store.add_checkpoint(leased.lease, 1, {"train_loss": 1.5})

    running = client.fine_tuning.jobs.retrieve(job.id)
    assert (running.status, running.model_dump()["stage"]) == ("running", "training")
    assert (running.hyperparameters.n_epochs, running.hyperparameters.learning_rate_multiplier) == (7, 1.0)
    assert running.model_dump()["dataset_id"] == dataset.dataset_id
    assert running.estimated_finish is not None
    (checkpoint,) = client.fine_tuning.jobs.checkpoints.list(job.id)
    assert (checkpoint.step_number, checkpoint.fine_tuning_job_id) == (1, job.id)
    assert (checkpoint.metrics.step, checkpoint.metrics.train_loss) == (1, 1.5)
    assert checkpoint.fine_tuned_model_checkpoint == "codename:ckpt-step-1"

    done = Succeeded(
        VersionId("version-1"), "codename@1", 1234, {"heldout_loss": 0.1}, "Held-out loss 2 → 0.1"
    )
    store.finish(leased.lease, done)
    ended = client.fine_tuning.jobs.retrieve(job.id)
    assert (ended.status, ended.fine_tuned_model, ended.trained_tokens) == ("succeeded", "codename@1", 1234)
    assert ended.finished_at is not None
    assert ended.model_dump()["progress"]["seconds_left"] is None
    events = list(client.fine_tuning.jobs.list_events(job.id, limit=2))
    assert events[0].message == "Held-out loss 2 → 0.1"
    assert events[-1].message.startswith("Created fine-tuning job")
    (metrics,) = [event for event in events if event.type == "metrics"]
    assert isinstance(metrics.data, dict) and metrics.data["train_loss"] == 1.5


@on_each_database
def test_a_failed_job_says_why(driven: Driven) -> None:
    client, store = driven.plane.openai(), driven.plane.parts.jobs
    job = client.fine_tuning.jobs.create(model=BASE, training_file=upload(driven))
    leased = store.claim("trainer")
    assert leased is not None
    store.finish(leased.lease, Failed(JobError("engine_mismatch", "It differs.", None)))
    found = client.fine_tuning.jobs.retrieve(job.id)
    assert found.status == "failed"
    assert found.error is not None and (found.error.code, found.error.message) == (
        "engine_mismatch",
        "It differs.",
    )


@on_each_database
def test_a_waiting_job_is_cancelled_at_once_and_stays_so(driven: Driven) -> None:
    jobs = driven.plane.openai().fine_tuning.jobs
    job = jobs.create(model=BASE, training_file=upload(driven))
    assert jobs.cancel(job.id).status == "cancelled"
    assert jobs.cancel(job.id).status == "cancelled"
    assert driven.plane.parts.jobs.claim("trainer") is None


@on_each_database
def test_jobs_are_listed_page_by_page_and_by_metadata(driven: Driven) -> None:
    jobs, file_id = driven.plane.openai().fine_tuning.jobs, upload(driven)
    ids = [
        jobs.create(model=BASE, training_file=file_id, metadata=metadata).id
        for metadata in ({"team": "a"}, {"team": "b"}, {}, {"team": "a", "run": "2"})
    ][::-1]
    assert [job.id for job in jobs.list(limit=2)] == ids
    assert [job.id for job in jobs.list(after=ids[2])] == ids[3:]
    assert [job.id for job in jobs.list(metadata={"team": "a"}, limit=1)] == [ids[0], ids[3]]
    assert [job.id for job in jobs.list(extra_query={"metadata": "null"})] == [ids[1]]


@pytest.mark.parametrize(
    ("change", "code", "param", "words"),
    [
        ({"model": "smolm2"}, "invalid_request_error", "model", ["smolm2", BASE]),
        ({"training_file": "file-none"}, None, "training_file", ["file-none"]),
        ({"suffix": "Not:valid"}, "invalid_request_error", "suffix", ["Not:valid"]),
        ({"suffix": BASE}, "invalid_request_error", "suffix", ["base model"]),
        (
            {"hyperparameters": {"n_epoch": 3}},
            "unknown_hyperparameter",
            "hyperparameters.n_epoch",
            ["n_epochs"],
        ),
        (
            {"method": {"type": "supervised", "supervised": {"hyperparameters": {"batch_size": 0}}}},
            "invalid_request_error",
            "method.supervised.hyperparameters.batch_size",
            [],
        ),
        ({"method": {"type": "telepathy"}}, "invalid_request_error", "method.type", ["supervised"]),
        ({"colour": "red"}, "invalid_request_error", "colour", []),
        ({"training_file": None}, "invalid_request_error", "training_file", ["training_data"]),
        ({"metadata": {"k": "a\0b"}}, "invalid_request_error", "metadata.k", []),
    ],
)
def test_a_job_that_cannot_work_is_refused_with_the_place(
    driven: Driven, change: dict[str, Any], code: str | None, param: str, words: list[str]
) -> None:
    body = {"model": BASE, "training_file": upload(driven), **change}
    http = driven.plane.http()
    answer = http.post("/v1/fine_tuning/jobs", json=body)
    error = answer.json()["error"]
    assert answer.status_code == 400, error
    assert error["param"] == param
    assert code is None or error["code"] == code
    assert all(word in error["message"] for word in words), error["message"]
    assert http.get("/v1/fine_tuning/jobs").json()["data"] == []


@on_each_database
def test_too_few_examples_are_refused_with_the_minimum(driven: Driven) -> None:
    client, http = driven.plane.openai(), driven.plane.http()
    driven.store(metadata={"topic": "codename"})
    with pytest.raises(openai.BadRequestError) as caught:
        client.fine_tuning.jobs.create(model=BASE, training_file=upload(driven, 9))
    assert "10" in caught.value.message
    answer = http.post("/v1/fine_tunes", json={"model": BASE, "training_data": TRAFFIC})
    assert answer.status_code == 400
    assert "10" in answer.json()["error"]["message"]
