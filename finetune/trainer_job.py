"""The story of one job, from its lease to its end; every step can be repeated after a kill."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

from adapters_store.version import Rollout, RolloutState, Version
from engines.launch.hardware import resolve_device, resolve_dtype
from finetune.datasets.dataset import Dataset
from finetune.datasets.snapshot import DatasetStore
from finetune.executors.executor import Executor
from finetune.jobs.job import Cancelled, Failed, JobError, LeasedJob, Outcome, Progress, Succeeded
from finetune.jobs.lease import LeaseLost
from finetune.jobs.states import JobStage
from finetune.jobs.store import JobStore
from finetune.trainer_folders import JobFolders
from finetune.trainer_release import Releaser, describe_release, make_metrics
from finetune.trainer_training import Training, TrainingFailed
from finetune.trainers.protocol import Event, TrainingResult
from finetune.trainers.spec import TrainingSpec
from loraway.errors import LorawayError
from loraway.settings import Settings

T = TypeVar("T")
_log = logging.getLogger(__name__)

#: A cancelled job's process is gone within five seconds of the request: this, and a kill.
_LONGEST_HEARTBEAT_SECONDS = 1.0
#: For a step and a checkpoint when the trainer is told to end.
_STOP_SECONDS = 7.0


class Interruption(Enum):
    """Why a job's story was broken off."""

    CANCELLED = "somebody cancelled the job"
    LEASE_LOST = "another trainer has taken the job over"
    STOPPING = "this trainer is told to end"


@dataclass(frozen=True, slots=True)
class TrainerParts:
    """What every job's story needs."""

    settings: Settings
    jobs: JobStore
    datasets: DatasetStore
    folders: JobFolders
    executor: Executor
    releaser: Releaser


class JobRun:
    """Runs one leased job; owns its folder and its training process while it holds the lease."""

    def __init__(self, leased: LeasedJob, parts: TrainerParts, stopping: asyncio.Event) -> None:
        self._job, self._lease, self._parts, self._stopping = leased.job, leased.lease, parts, stopping
        self._folder = parts.folders.make(leased.job.job_id)
        self._training = Training(self._folder, parts.executor, self._relay)
        self._is_releasing = False

    async def run(self) -> None:
        """Until the job has ended, or is somebody else's to go on with."""
        story = asyncio.create_task(self._story())
        watch = asyncio.create_task(self._watch())
        try:
            await asyncio.wait({story, watch}, return_when=asyncio.FIRST_COMPLETED)
            if watch.done() and not story.done():
                await self._break_off(watch.result(), story)
            else:
                await self._finish(await story)
        except LeaseLost:
            await self._training.kill()
            _log.warning("%s: the lease is lost", self._job.job_id)
        finally:
            for task in (story, watch):
                task.cancel()
            await asyncio.gather(story, watch, return_exceptions=True)

    async def _story(self) -> Outcome:
        """Prepare, train, register, roll out; how it ended."""
        try:
            dataset = await asyncio.to_thread(self._parts.datasets.build, self._job)
            spec = await self._prepare(dataset)
            await self._set_stage(JobStage.TRAINING)
            result = await self._training.run()
            self._is_releasing = True
            await self._set_stage(JobStage.REGISTERING)
            version = await self._parts.releaser.register(self._job, spec, dataset, result, self._folder)
            await self._set_stage(JobStage.ROLLING_OUT)
            rollout = await self._parts.releaser.roll_out(version, self._folder)
            return _outcome(rollout, version, result)
        except LeaseLost:
            raise
        except TrainingFailed as failure:
            return Failed(failure.error)
        except LorawayError as error:
            return Failed(JobError(error.code, error.message, error.param))

    async def _prepare(self, dataset: Dataset) -> TrainingSpec:
        """The job's spec: written once, then read, so that a resumed run is the same run."""
        if not (self._folder / "spec.json").exists():
            spec = self._make_spec(dataset)
            await asyncio.to_thread(spec.write, self._folder)
        spec = await asyncio.to_thread(TrainingSpec.read, self._folder)
        chosen = spec.hyperparameters.model_dump()
        await self._write(self._parts.jobs.set_dataset, dataset.dataset_id, chosen)
        return spec

    def _make_spec(self, dataset: Dataset) -> TrainingSpec:
        settings, request = self._parts.settings, self._job.request
        device = resolve_device(settings.engine.device)
        return TrainingSpec(
            job_id=self._job.job_id,
            method=request.method,
            model_path=settings.model_path.resolve(),
            dataset_path=dataset.path.resolve(),
            hyperparameters=request.resolve(dataset.train_examples),
            seed=request.seed,
            max_length=request.max_length(settings.engine.max_model_len),
            checkpoint_steps=settings.trainer.checkpoint_steps,
            threads=settings.trainer.threads,
            device=device,
            training_dtype="bfloat16" if device == "cuda" else "float32",
            serving_dtype=resolve_dtype(settings.engine.dtype, device),
        )

    async def _watch(self) -> Interruption:
        """Keep the lease; returns when the story must be broken off."""
        interval = min(self._parts.settings.trainer.heartbeat_seconds, _LONGEST_HEARTBEAT_SECONDS)
        while not self._stopping.is_set():
            try:
                if (
                    await asyncio.to_thread(self._parts.jobs.heartbeat, self._lease)
                    and await self._may_cancel()
                ):
                    return Interruption.CANCELLED
            except LeaseLost:
                return Interruption.LEASE_LOST
            try:
                await asyncio.wait_for(self._stopping.wait(), interval)
            except TimeoutError:
                continue
        return Interruption.STOPPING

    async def _may_cancel(self) -> bool:
        """Not once a version is being stored or brought out: then the job ends as the roll-out does."""
        return not self._is_releasing or await self._parts.releaser.withdraw(self._folder)

    async def _break_off(self, why: Interruption, story: asyncio.Task[Outcome]) -> None:
        _log.info("%s: broken off, %s", self._job.job_id, why.value)
        story.cancel()
        await asyncio.gather(story, return_exceptions=True)
        if why is Interruption.CANCELLED:
            await self._finish(Cancelled())
        elif why is Interruption.STOPPING:
            await self._training.stop(_STOP_SECONDS)
            message = "The trainer was stopped; the job goes on from its last checkpoint when one runs again."
            await self._write(self._parts.jobs.requeue, message)
        else:
            raise LeaseLost

    async def _finish(self, outcome: Outcome) -> None:
        await self._training.kill()
        await self._write(self._parts.jobs.finish, outcome)
        await asyncio.to_thread(self._parts.folders.remove, self._job.job_id)
        _log.info("%s: %s", self._job.job_id, outcome.message)

    async def _relay(self, event: Event) -> None:
        """What the training process says, into the job."""
        jobs = self._parts.jobs
        match event.type:
            case "progress":
                progress = Progress(
                    step=event.step,
                    total_steps=event.total_steps,
                    loss=event.loss,
                    learning_rate=event.learning_rate,
                    tokens=event.tokens,
                    tokens_per_second=event.tokens_per_second,
                    seconds_left=event.seconds_left,
                )
                await self._write(jobs.progress, progress)
            case "message":
                await self._write(jobs.add_event, event.text, event.level)
            case "checkpoint":
                await self._write(jobs.add_checkpoint, event.step, {"train_loss": event.loss})
            case "started" if event.from_step:
                text = f"Training goes on from step {event.from_step}/{event.total_steps}."
                await self._write(jobs.add_event, text)
            case "evaluating":
                await self._set_stage(JobStage.EVALUATING)

    async def _set_stage(self, stage: JobStage) -> None:
        await self._write(self._parts.jobs.set_stage, stage)

    async def _write(self, write: Callable[..., T], *arguments: Any) -> T:
        """One of the job store's writes, under this job's lease, off the loop."""
        return await asyncio.to_thread(write, self._lease, *arguments)


def _outcome(rollout: Rollout, version: Version, result: TrainingResult) -> Outcome:
    if rollout.state is RolloutState.DONE:
        return Succeeded(
            version_id=version.version_id,
            fine_tuned_model=version.name,
            trained_tokens=result.trained_tokens,
            metrics=make_metrics(result),
            message=describe_release(version, result),
        )
    error = rollout.error or {}
    reason = error.get("message") or "no reason given."
    message = f"{version.name} is registered but was not rolled out: {reason}"
    return Failed(JobError(error.get("code") or "rollout_failed", message))
