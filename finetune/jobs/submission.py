"""From a request body to a queued job: everything that can be known to be wrong is said at once."""

from __future__ import annotations

import time
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from sqlalchemy import select

from finetune.datasets.from_file import check_file
from finetune.datasets.snapshot import DatasetStore
from finetune.files import FileStore
from finetune.jobs.job import Job
from finetune.jobs.request import JobRequest, TrainingData
from finetune.jobs.store import JobStore
from loraway.database import Database
from loraway.errors import InvalidRequest
from loraway.ids import ProjectId
from loraway.schema import adapters, base_models


class JobSubmission:
    """Checks and queues fine-tuning jobs."""

    def __init__(
        self,
        database: Database,
        jobs: JobStore,
        files: FileStore,
        datasets: DatasetStore,
        max_lora_rank: int,
    ) -> None:
        self._database = database
        self._jobs = jobs
        self._files = files
        self._datasets = datasets
        self._max_lora_rank = max_lora_rank

    def submit(self, project_id: ProjectId, body: Mapping[str, Any]) -> Job:
        """Queue the job that this JSON body asks for.

        Raises InvalidRequest (or one of its kinds) with the field it is about: the body's form, an unknown
        base model, a name that is taken, a file that is missing or bad, too few examples.
        """
        request = JobRequest.from_body(body, max_lora_rank=self._max_lora_rank)
        self._check_names(project_id, request)
        for param in ("training_file", "validation_file"):
            file_id = getattr(request, param)
            if file_id is not None:
                check_file(self._files, project_id, file_id, param)
        request = _frozen_in_time(request)
        self._datasets.check_enough(project_id, request)
        return self._jobs.create(project_id, request)

    def _check_names(self, project_id: ProjectId, request: JobRequest) -> None:
        with self._database.read() as connection:
            bases = list(connection.execute(select(base_models.c.name)).scalars())
            mine = (adapters.c.project_id == project_id) & (adapters.c.name == request.suffix)
            owner = connection.execute(select(adapters.c.base_model).where(mine)).scalar()
        if request.model not in bases:
            near = get_close_matches(request.model, bases, n=3, cutoff=0.4) or sorted(bases)[:3]
            hint = f" Base models here: {', '.join(map(repr, near))}." if near else ""
            raise InvalidRequest(f"{request.model!r} is not a base model.{hint}", param="model")
        if request.suffix in bases:
            raise InvalidRequest(
                f"{request.suffix!r} is the name of a base model; choose another suffix.", param="suffix"
            )
        if owner is not None and owner != request.model:
            raise InvalidRequest(
                f"The adapter {request.suffix!r} belongs to the base model {owner!r}; choose another suffix.",
                param="suffix",
            )


def _frozen_in_time(request: JobRequest) -> JobRequest:
    """The request, with what is logged from now on left out."""
    if request.training_data is None or request.training_data.traffic.before is not None:
        return request
    traffic = request.training_data.traffic.model_copy(update={"before": time.time()})
    return request.model_copy(update={"training_data": TrainingData(traffic=traffic)})
