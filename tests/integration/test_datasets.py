"""Datasets from files and traffic, on both databases and a real disk."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, insert, select

from adapters_store.blobs import LocalBlobStore
from adapters_store.lineage import Lineage
from finetune.datasets.snapshot import DatasetStore
from finetune.files import FileStore
from finetune.jobs.job import Job
from finetune.jobs.store import JobStore
from finetune.jobs.submission import JobSubmission
from loraway.database import Database
from loraway.errors import InvalidRequest, InvalidTrainingFile, NotFound
from loraway.ids import COMPLETION, FEEDBACK, ProjectId, VersionId, new_id
from loraway.schema import (
    adapters,
    base_models,
    completion_metadata,
    completions,
    datasets,
    feedback,
    projects,
    versions,
)
from loraway.settings import TrainerSettings

PROJECT, OTHER = ProjectId("proj_one"), ProjectId("proj_two")
BASE = "smollm2-135m"


@dataclass
class Workshop:
    """The parts under test, and the traffic they work on."""

    database: Database
    root: Path
    files: FileStore = field(init=False)
    jobs: JobStore = field(init=False)
    datasets: DatasetStore = field(init=False)
    submission: JobSubmission = field(init=False)

    def __post_init__(self) -> None:
        settings = TrainerSettings()
        self.files = FileStore(self.database, LocalBlobStore(self.root))
        self.jobs = JobStore(self.database, settings.lease_seconds)
        self.datasets = DatasetStore(self.database, self.files, self.root / "datasets", settings)
        self.submission = JobSubmission(self.database, self.jobs, self.files, self.datasets, 32)

    def log(
        self,
        question: str,
        answer: str = "No idea.",
        *,
        correction: str | None = None,
        score: float | None = None,
        project_id: ProjectId = PROJECT,
        topic: str = "codename",
        created_at: float = 1000.0,
        model: str = BASE,
    ) -> str:
        completion_id = new_id(COMPLETION)
        messages = [{"role": "user", "content": question}]
        choice = {"message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}
        with self.database.write() as connection:
            connection.execute(
                insert(completions).values(
                    id=completion_id,
                    project_id=project_id,
                    request_id="req_1",
                    model=model,
                    base_model=BASE,
                    request=json.dumps({"model": BASE, "messages": messages}),
                    response=json.dumps({"choices": [choice]}),
                    metadata={"topic": topic},
                    is_stream=False,
                    created_at=created_at,
                )
            )
            connection.execute(
                insert(completion_metadata).values(completion_id=completion_id, key="topic", value=topic)
            )
            if correction is not None or score is not None:
                better = {"role": "assistant", "content": correction} if correction is not None else None
                said = {"score": score} if better is None else {"score": score, "correction": better}
                connection.execute(
                    insert(feedback).values(
                        id=new_id(FEEDBACK),
                        project_id=project_id,
                        completion_id=completion_id,
                        created_at=0.0,
                        **said,
                    )
                )
        return completion_id

    def upload(self, count: int, first: int = 0, project_id: ProjectId = PROJECT) -> str:
        lines = [
            json.dumps(
                {
                    "messages": [
                        {"role": "user", "content": f"Question {number}?"},
                        {"role": "assistant", "content": "Bluefin-7"},
                    ]
                }
            )
            for number in range(first, first + count)
        ]
        return self.files.create(project_id, "t.jsonl", "fine-tune", ["\n".join(lines).encode()]).file_id

    def submit(self, project_id: ProjectId = PROJECT, **fields: Any) -> Job:
        return self.submission.submit(project_id, {"model": BASE, "suffix": "codename", **fields})

    def submit_traffic(self, **conditions: Any) -> Job:
        return self.submit(training_data={"traffic": conditions})


@pytest.fixture
def shop(database: Database, tmp_path: Path) -> Workshop:
    with database.write() as connection:
        for project_id in (PROJECT, OTHER):
            connection.execute(insert(projects).values(id=project_id, name=project_id, created_at=0.0))
        connection.execute(
            insert(base_models).values(
                name=BASE, path="/m", revision="r1", template_sha256="t1", created_at=0.0
            )
        )
    return Workshop(database, tmp_path / "blobs")


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_corrected_traffic_becomes_a_dataset_with_its_lineage(shop: Workshop, database: Database) -> None:
    corrected = [shop.log(f"Codename, wording {n}?", correction="Bluefin-7") for n in range(12)]
    shop.log("Codename, wording 0?")  # the same question, never corrected
    shop.log("Bad?", score=-1.0)
    other = [
        shop.log("Other topic?", topic="weather"),
        shop.log("Codename, wording 99?", project_id=OTHER, correction="Secret-1"),
    ]

    job = shop.submit_traffic(metadata={"topic": "codename"})
    dataset = shop.datasets.build(job)

    train, held_out = rows(dataset.path / "train.jsonl"), rows(dataset.path / "heldout.jsonl")
    assert (len(train), len(held_out)) == (dataset.train_examples, dataset.held_out_examples) == (11, 1)
    assert {row["messages"][-1]["content"] for row in train + held_out} == {"Bluefin-7"}
    assert dataset.source.left_out == {"negative_score": 1, "superseded": 1}
    manifest = (dataset.path / "manifest.json").read_bytes()
    assert dataset.sha256 == hashlib.sha256(manifest).hexdigest() == dataset.path.name
    for name, expected in json.loads(manifest)["files"].items():
        assert hashlib.sha256((dataset.path / name).read_bytes()).hexdigest() == expected

    leased = shop.jobs.claim("trainer-1")
    assert leased is not None
    shop.jobs.set_dataset(leased.lease, dataset.dataset_id, {})
    _insert_version(database, job)
    lineage = Lineage(database)
    origin = lineage.origin(PROJECT, VersionId("version-1"))
    assert (origin.job_id, origin.dataset_id) == (job.job_id, dataset.dataset_id)
    assert list(origin.completion_ids) == corrected
    assert lineage.versions_from_completion(PROJECT, corrected[3]) == ["version-1"]
    assert lineage.versions_from_dataset(PROJECT, dataset.sha256) == ["version-1"]
    assert lineage.versions_from_completion(PROJECT, other[0]) == []
    assert lineage.versions_from_completion(OTHER, corrected[3]) == []
    with pytest.raises(NotFound):
        lineage.origin(OTHER, VersionId("version-1"))


def _insert_version(database: Database, job: Job) -> None:
    with database.write() as connection:
        connection.execute(
            insert(adapters).values(
                id="adapter-1",
                project_id=PROJECT,
                name="codename",
                base_model=BASE,
                next_number=2,
                created_at=0.0,
            )
        )
        connection.execute(
            insert(versions).values(
                id="version-1",
                adapter_id="adapter-1",
                number=1,
                engine_name="codename@1.aaaaaa",
                folder="f",
                rank=16,
                manifest={},
                state="registered",
                job_id=job.job_id,
                created_at=0.0,
            )
        )


def test_a_job_has_one_dataset_whatever_happens_to_the_traffic_later(
    shop: Workshop, database: Database
) -> None:
    for number in range(12):
        shop.log(f"Question {number}?", "Fine.")
    job = shop.submit_traffic()
    shop.log("Too late?", "Yes.", created_at=2e9 * 2)
    first = shop.datasets.build(job)
    shop.log("Later still?", "Yes.", created_at=1000.0)

    assert shop.datasets.build(job) == first == shop.datasets.get(first.dataset_id)
    assert first.train_examples + first.held_out_examples == 12
    names = [path.name for path in first.path.parent.iterdir()]
    assert names == [first.sha256]


def test_the_same_content_is_stored_once_for_two_jobs(shop: Workshop, database: Database) -> None:
    file_id = shop.upload(30)
    first = shop.datasets.build(shop.submit(training_file=file_id))
    second = shop.datasets.build(shop.submit(training_file=file_id))
    assert first.dataset_id != second.dataset_id and first.path == second.path
    with database.read() as connection:
        assert connection.execute(select(func.count()).select_from(datasets)).scalar_one() == 2


def test_a_validation_file_is_the_held_out_part(shop: Workshop) -> None:
    job = shop.submit(training_file=shop.upload(12), validation_file=shop.upload(3, first=100))
    dataset = shop.datasets.build(job)
    held_out = rows(dataset.path / "heldout.jsonl")
    assert (dataset.train_examples, dataset.held_out_examples, len(held_out)) == (12, 3, 3)
    assert held_out[0]["messages"][0]["content"] == "Question 100?"


def test_conditions_choose_the_traffic(shop: Workshop) -> None:
    for number in range(12):
        shop.log(f"Early {number}?", created_at=100.0)
        shop.log(f"Late {number}?", created_at=200.0, score=1.0, model="codename@1")

    def questions(**conditions: Any) -> set[str]:
        dataset = shop.datasets.build(shop.submit_traffic(**conditions))
        found = [*rows(dataset.path / "train.jsonl"), *rows(dataset.path / "heldout.jsonl")]
        return {row["messages"][0]["content"].split()[0] for row in found}

    assert questions() == questions(model=BASE) == {"Early", "Late"}
    assert questions(after=150.0) == questions(min_score=0.5) == {"Late"}
    assert questions(model="codename") == questions(model="codename@1") == {"Late"}
    assert questions(before=150.0) == {"Early"}
    with pytest.raises(InvalidRequest, match="has 0 different examples"):
        shop.submit_traffic(model="codename@10")
    with pytest.raises(InvalidRequest, match="has 0 different examples"):
        shop.submit_traffic(model="c%")


def test_many_batches_of_traffic_are_read_to_the_end(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.datasets.traffic._BATCH", 4)
    ids = [shop.log(f"Question {number}?", "Fine.") for number in range(12)]
    dataset = shop.datasets.build(shop.submit_traffic())
    assert dataset.train_examples + dataset.held_out_examples == len(ids)


def test_too_few_examples_are_refused_with_the_minimum_and_what_was_left_out(shop: Workshop) -> None:
    with pytest.raises(InvalidRequest, match="has 9 different examples; a job needs at least 10") as caught:
        shop.submit(training_file=shop.upload(9))
    assert caught.value.param == "training_file"
    for number in range(12):
        shop.log("The same question?", "Fine.")
        shop.log(f"Bad {number}?", score=-1.0)
    with pytest.raises(InvalidRequest, match=r"1 example; .* at least 10") as caught:
        shop.submit_traffic(metadata={"topic": "codename"})
    assert "11 duplicate, 12 negative score" in caught.value.message
    assert shop.jobs.list(PROJECT).items == []


def test_a_job_that_cannot_run_is_refused_at_once(shop: Workshop, database: Database) -> None:
    file_id = shop.upload(12)
    theirs = shop.upload(12, project_id=OTHER)
    with pytest.raises(InvalidTrainingFile):
        shop.files.create(PROJECT, "bad.jsonl", "fine-tune", [b"{}\n"])
    bad = next(file.file_id for file in shop.files.list(PROJECT).items if file.status == "error")

    with pytest.raises(InvalidRequest, match=r"not a base model.*'smollm2-135m'") as caught:
        shop.submit(training_file=file_id, model="smollm2")
    assert caught.value.param == "model"
    for missing in ("file-none", theirs):
        with pytest.raises(InvalidRequest, match="no file") as caught:
            shop.submit(training_file=missing)
        assert (caught.value.param, caught.value.status) == ("training_file", 400)
    with pytest.raises(InvalidTrainingFile, match="line 1: 'messages' is missing"):
        shop.submit(training_file=bad)
    with pytest.raises(InvalidRequest, match="no file"):
        shop.submit(training_file=file_id, validation_file="file-none")
    with pytest.raises(InvalidRequest, match="name of a base model"):
        shop.submit(training_file=file_id, suffix=BASE)
    with database.write() as connection:
        connection.execute(
            insert(adapters).values(
                id="a", project_id=PROJECT, name="tone", base_model="x", next_number=1, created_at=0.0
            )
        )
    with pytest.raises(InvalidRequest, match="belongs to the base model 'x'"):
        shop.submit(training_file=file_id, suffix="tone")
    assert shop.jobs.list(PROJECT).items == []


def test_a_file_deleted_before_the_job_ran_is_named(shop: Workshop) -> None:
    file_id = shop.upload(12)
    job = shop.submit(training_file=file_id)
    shop.files.delete(PROJECT, file_id)
    with pytest.raises(NotFound, match=file_id):
        shop.datasets.build(job)
    assert list((shop.root / "datasets").iterdir()) == []
