"""Freezes a job's examples into a dataset: a folder named by its content, a row, and its lineage."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import Connection, insert, select

from adapters_store.blobs import hash_file, publish_folder, staged_folder
from finetune.datasets.dataset import (
    HELD_OUT_NAME,
    MANIFEST_NAME,
    TRAIN_NAME,
    Dataset,
    DatasetContent,
    DatasetSource,
)
from finetune.datasets.example import Example
from finetune.datasets.from_file import file_examples
from finetune.datasets.selection import Fingerprint, LeftOut, choose, hold_out
from finetune.datasets.traffic import traffic_examples
from finetune.files import FileStore
from finetune.jobs.job import Job
from finetune.jobs.request import JobRequest
from loraway.database import Database, insert_once
from loraway.errors import InvalidRequest, NotFound
from loraway.ids import DATASET, JOB, DatasetId, ProjectId
from loraway.schema import dataset_completions, datasets
from loraway.settings import TrainerSettings


@dataclass(slots=True)
class _Spool:
    """Examples on the disk, one a line, and what decides over them in memory."""

    path: Path
    fingerprints: list[Fingerprint] = field(default_factory=list)
    completion_ids: list[str | None] = field(default_factory=list)
    left_out: Counter[LeftOut] = field(default_factory=Counter)

    def fill(self, examples: Iterator[Example | LeftOut]) -> None:
        with self.path.open("wb") as file:
            for example in examples:
                if isinstance(example, LeftOut):
                    self.left_out[example] += 1
                    continue
                file.write(example.line + b"\n")
                self.fingerprints.append(example.fingerprint)
                self.completion_ids.append(example.completion_id)

    def lines(self) -> Iterator[tuple[int, bytes]]:
        with self.path.open("rb") as file:
            yield from enumerate(file)


class DatasetStore:
    """Makes datasets and finds them again. Owns the tables `datasets` and `dataset_completions`.

    Folders lie in `datasets_dir`, each named by the sha256 of its manifest.
    """

    def __init__(
        self, database: Database, files: FileStore, datasets_dir: Path, settings: TrainerSettings
    ) -> None:
        self._database = database
        self._files = files
        self._folder = datasets_dir
        self._settings = settings

    def check_enough(self, project_id: ProjectId, request: JobRequest) -> None:
        """Raise InvalidRequest, which names the minimum, when the request selects too few examples.

        Stops reading as soon as there are enough.
        """
        minimum = self._settings.minimum_examples
        fingerprints: list[Fingerprint] = []
        questions: set[bytes] = set()
        left_out: Counter[LeftOut] = Counter()
        for example in self._examples(project_id, request):
            if isinstance(example, LeftOut):
                left_out[example] += 1
                continue
            fingerprints.append(example.fingerprint)
            questions.add(example.fingerprint.question)
            if len(questions) >= minimum:
                return
        selection = choose(fingerprints)
        if len(selection.kept) < minimum:
            raise _too_few(request, len(selection.kept), minimum, left_out + selection.left_out)

    def build(self, job: Job) -> Dataset:
        """The job's dataset, made at its first call and the same ever after.

        Raises InvalidRequest when too few examples are left, NotFound when a file was deleted meanwhile.
        A crash leaves nothing but a staging folder.
        """
        dataset_id = DatasetId(DATASET + job.job_id.removeprefix(JOB))
        with suppress(NotFound):
            return self.get(dataset_id)
        with staged_folder(self._folder) as work, staged_folder(self._folder) as staging:
            spool = _Spool(work / "examples.jsonl")
            spool.fill(self._examples(job.project_id, job.request))
            kept, content, left_out = self._write(job, spool, work, staging)
            dataset = Dataset(
                dataset_id=dataset_id,
                project_id=job.project_id,
                sha256=hashlib.sha256((staging / MANIFEST_NAME).read_bytes()).hexdigest(),
                path=self._folder / hash_file(staging / MANIFEST_NAME),
                content=content,
                source=_source(job.request, left_out),
                created_at=time.time(),
            )
            with suppress(FileExistsError):  # the same content, frozen for another job
                publish_folder(staging, dataset.path)
        completion_ids = {found for place in kept if (found := spool.completion_ids[place]) is not None}
        with self._database.write() as connection:
            _insert(connection, dataset, sorted(completion_ids))
        return self.get(dataset_id)

    def get(self, dataset_id: DatasetId) -> Dataset:
        """The dataset with this id. Raises NotFound."""
        with self._database.read() as connection:
            row = connection.execute(select(datasets).where(datasets.c.id == dataset_id)).first()
        if row is None:
            raise NotFound(f"There is no dataset {dataset_id[:80]!r}.")
        return Dataset(
            dataset_id=DatasetId(row.id),
            project_id=ProjectId(row.project_id),
            sha256=row.sha256,
            path=self._folder / row.sha256,
            content=DatasetContent.model_validate(row.manifest["content"]),
            source=DatasetSource.model_validate(row.manifest["source"]),
            created_at=row.created_at,
        )

    def _examples(self, project_id: ProjectId, request: JobRequest) -> Iterator[Example | LeftOut]:
        if request.training_file is not None:
            return file_examples(self._files, project_id, request.training_file)
        assert request.training_data is not None  # JobRequest has exactly one of the two
        return traffic_examples(self._database, project_id, request.training_data.traffic)

    def _write(
        self, job: Job, spool: _Spool, work: Path, staging: Path
    ) -> tuple[list[int], DatasetContent, Counter[LeftOut]]:
        """Fill the staging folder; returns the places kept, what the folder holds, and what was left out."""
        request, minimum = job.request, self._settings.minimum_examples
        selection = choose(spool.fingerprints)
        left_out = spool.left_out + selection.left_out
        if len(selection.kept) < minimum:
            raise _too_few(request, len(selection.kept), minimum, left_out)
        held_out = _Spool(work / HELD_OUT_NAME)
        if request.validation_file is not None:
            held_out.fill(file_examples(self._files, job.project_id, request.validation_file))
            held_places: frozenset[int] = frozenset()
        else:
            fraction = request.held_out_fraction(self._settings.held_out_fraction)
            kept = [spool.fingerprints[place] for place in selection.kept]
            held_places = frozenset(selection.kept[i] for i in hold_out(kept, fraction, minimum))
            held_out.path.touch()
        train_places = set(selection.kept) - held_places
        with (staging / TRAIN_NAME).open("wb") as train, held_out.path.open("ab") as held:
            for place, line in spool.lines():
                if place in train_places:
                    train.write(line)
                elif place in held_places:
                    held.write(line)
        shutil.move(held_out.path, staging / HELD_OUT_NAME)
        content = DatasetContent(
            train_examples=len(train_places),
            held_out_examples=len(held_places) or len(held_out.fingerprints),
            files={name: hash_file(staging / name) for name in (TRAIN_NAME, HELD_OUT_NAME)},
        )
        (staging / MANIFEST_NAME).write_text(content.model_dump_json(indent=2) + "\n", encoding="utf-8")
        return selection.kept, content, left_out


def _insert(connection: Connection, dataset: Dataset, completion_ids: list[str]) -> None:
    is_new = insert_once(
        connection,
        datasets,
        id=dataset.dataset_id,
        project_id=dataset.project_id,
        sha256=dataset.sha256,
        folder=f"datasets/{dataset.sha256}",
        manifest={
            "content": dataset.content.model_dump(mode="json"),
            "source": dataset.source.model_dump(mode="json"),
        },
        created_at=dataset.created_at,
    )
    if is_new and completion_ids:
        connection.execute(
            insert(dataset_completions),
            [{"dataset_id": dataset.dataset_id, "completion_id": each} for each in completion_ids],
        )


def _source(request: JobRequest, left_out: Counter[LeftOut]) -> DatasetSource:
    traffic = request.training_data.traffic if request.training_data is not None else None
    return DatasetSource(
        training_file=request.training_file,
        validation_file=request.validation_file,
        traffic=traffic.model_dump(mode="json", exclude_none=True) if traffic is not None else None,
        left_out={reason.value: count for reason, count in sorted(left_out.items())},
    )


def _too_few(request: JobRequest, found: int, minimum: int, left_out: Counter[LeftOut]) -> InvalidRequest:
    where = "The training file has" if request.training_file is not None else "The traffic selected has"
    noun = "example" if found == 1 else "different examples"
    reasons = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in sorted(left_out.items()))
    tail = f" Left out: {reasons}." if reasons else ""
    param = "training_file" if request.training_file is not None else "training_data"
    return InvalidRequest(f"{where} {found} {noun}; a job needs at least {minimum}.{tail}", param=param)
