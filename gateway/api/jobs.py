"""`/v1/fine_tuning/jobs`, and the same routes under `/v1/fine_tunes`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Body, Query, Request

from finetune.jobs.job import Job
from finetune.jobs.request import METHODS
from finetune.jobs.store import JobStore
from finetune.jobs.submission import JobSubmission
from gateway.api.job_objects import (
    CheckpointObject,
    EventObject,
    JobObject,
    checkpoint_object,
    event_object,
    job_object,
)
from gateway.api.routing import METADATA_PARAMETER, After, Limit, ListOf, Project, api_router, metadata_filter
from loraway.ids import ProjectId

#: The second is what OpenAI's first fine-tuning API was called; the routes are the same.
PATHS = ("/v1/fine_tuning/jobs", "/v1/fine_tunes")
_BATCH = 100
#: For the description of the interface; `finetune.jobs.request.JobRequest` does the checking.
_BODY: dict[str, Any] = {
    "type": "object",
    "required": ["model"],
    "additionalProperties": False,
    "properties": {
        "model": {"type": "string", "description": "Base model to train on."},
        "suffix": {"type": "string", "description": "Name of the adapter; its next version is made."},
        "training_file": {"type": "string", "description": "Id of an uploaded file; or training_data."},
        "validation_file": {"type": "string"},
        "training_data": {
            "type": "object",
            "description": "Logged traffic to train on.",
            "properties": {
                "traffic": {
                    "type": "object",
                    "properties": {
                        "metadata": {"type": "object", "additionalProperties": {"type": "string"}},
                        "model": {"type": "string"},
                        "after": {"type": "number"},
                        "before": {"type": "number"},
                        "min_score": {"type": "number"},
                    },
                }
            },
        },
        "method": {
            "type": "object",
            "required": ["type"],
            "properties": {
                "type": {"enum": list(METHODS)},
                "supervised": {"type": "object", "properties": {"hyperparameters": {"type": "object"}}},
            },
        },
        "hyperparameters": {"type": "object", "description": "OpenAI's older place for them."},
        "seed": {"type": "integer", "minimum": 0},
        "metadata": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}


class JobRoutes:
    """The routes of fine-tuning jobs."""

    def __init__(self, jobs: JobStore, submission: JobSubmission) -> None:
        self._jobs = jobs
        self._submission = submission

    def router(self) -> APIRouter:
        router = api_router("Fine-tuning")
        for path in PATHS:
            router.post(path, openapi_extra=_described(_BODY))(self.create)
            router.get(path, openapi_extra=METADATA_PARAMETER)(self.list_jobs)
            router.get(f"{path}/{{job_id}}")(self.retrieve)
            router.post(f"{path}/{{job_id}}/cancel")(self.cancel)
            router.get(f"{path}/{{job_id}}/events")(self.list_events)
            router.get(f"{path}/{{job_id}}/checkpoints")(self.list_checkpoints)
        return router

    def create(self, project: Project, body: Annotated[dict[str, Any], Body()]) -> JobObject:
        """Queue a job: `model`, `suffix`, and either `training_file` or `training_data.traffic`."""
        return job_object(self._submission.submit(project, body))

    def list_jobs(
        self, project: Project, request: Request, after: After = None, limit: Limit = 20
    ) -> ListOf[JobObject]:
        """The jobs, newest first."""
        found: list[JobObject] = []
        for job in self._matching(project, after, request):
            if len(found) == limit:
                return ListOf.of(found, has_more=True)
            found.append(job_object(job))
        return ListOf.of(found)

    def retrieve(self, project: Project, job_id: str) -> JobObject:
        """One job."""
        return job_object(self._jobs.get(project, job_id))

    def cancel(self, project: Project, job_id: str) -> JobObject:
        """Cancel a job. One that runs is `cancelled` once its process is gone; one that ended stays so."""
        return job_object(self._jobs.cancel(project, job_id))

    def list_events(
        self, project: Project, job_id: str, after: After = None, limit: Limit = 20
    ) -> ListOf[EventObject]:
        """What happened to a job, newest first."""
        page = self._jobs.events(project, job_id, after, limit)
        return ListOf.of([event_object(item) for item in page.items], page.has_more)

    def list_checkpoints(
        self,
        project: Project,
        job_id: str,
        after: After = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 10,
    ) -> ListOf[CheckpointObject]:
        """The steps from which training could go on, newest first. They cannot be called as models."""
        suffix = self._jobs.get(project, job_id).suffix
        page = self._jobs.checkpoints(project, job_id, after, limit)
        return ListOf.of([checkpoint_object(item, suffix) for item in page.items], page.has_more)

    def _matching(self, project: ProjectId, after: str | None, request: Request) -> Iterator[Job]:
        """The jobs that the query's metadata filter lets through; `metadata=null`: those without any."""
        wants_none = request.query_params.get("metadata") == "null"
        pairs = {} if wants_none else metadata_filter(request)
        has_more = True
        while has_more:
            page = self._jobs.list(project, after, _BATCH)
            for job in page.items:
                metadata = job.request.metadata
                if (wants_none and not metadata) or (not wants_none and pairs.items() <= metadata.items()):
                    yield job
            has_more, after = page.has_more, page.items[-1].job_id if page.items else None


def _described(body: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": body}}}}
