"""From a trained adapter to a live version: manifest, registry, roll-out."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from pydantic import BaseModel

from adapters_store.manifest import Manifest
from adapters_store.registry import Registry
from adapters_store.version import Rollout, RolloutState, Version
from engines.controller_client import ControllerClient
from finetune.datasets.dataset import Dataset
from finetune.jobs.job import Job
from finetune.trainers.protocol import HeldOutScore, TrainingResult
from finetune.trainers.spec import TrainingSpec, write_whole
from loraway import models
from loraway.errors import Conflict
from loraway.ids import RolloutId

_POLL_SECONDS = 0.02


class _RolloutNote(BaseModel):
    """rollout.json: which roll-out is this job's, kept over restarts of the trainer."""

    rollout_id: str


class Releaser:
    """Registers versions and has the controller roll them out. Both can be repeated without harm."""

    def __init__(self, registry: Registry, controller: ControllerClient) -> None:
        self._registry, self._controller = registry, controller

    async def register(
        self, job: Job, spec: TrainingSpec, dataset: Dataset, result: TrainingResult, job_folder: Path
    ) -> Version:
        """The job's version, made at the first call."""
        manifest = await asyncio.to_thread(make_manifest, job, spec, dataset, result)
        return await asyncio.to_thread(
            self._registry.register,
            job.project_id,
            job.suffix,
            job.base_model,
            job_folder / "adapter",
            manifest,
            job.job_id,
        )

    async def roll_out(self, version: Version, job_folder: Path) -> Rollout:
        """Ask for the roll-out, once, and wait for its end."""
        rollout_id = await self._rollout_of(version, job_folder)
        await self._controller.wake()
        while True:
            rollout = await asyncio.to_thread(self._registry.rollout, rollout_id)
            if rollout.state.is_terminal:
                return rollout
            await asyncio.sleep(_POLL_SECONDS)

    async def withdraw(self, job_folder: Path) -> bool:
        """Take the roll-out back; False when it is not asked for yet or the controller is at it already."""
        rollout_id = _noted_rollout(job_folder)
        if rollout_id is None:
            return False
        rollout = await asyncio.to_thread(self._registry.rollout, rollout_id)
        if rollout.state is not RolloutState.PENDING:
            return False
        error = Conflict("The job was cancelled.")
        await asyncio.to_thread(self._registry.finish_rollout, rollout_id, RolloutState.FAILED, error)
        return True

    async def _rollout_of(self, version: Version, job_folder: Path) -> RolloutId:
        noted = _noted_rollout(job_folder)
        if noted is not None:
            return noted
        rollout_id = await asyncio.to_thread(
            self._registry.request_rollout, version.project_id, version.adapter_name, version.version_id
        )
        note = _RolloutNote(rollout_id=rollout_id)
        await asyncio.to_thread(write_whole, job_folder / "rollout.json", note.model_dump_json())
        return rollout_id


def make_manifest(job: Job, spec: TrainingSpec, dataset: Dataset, result: TrainingResult) -> Manifest:
    """All that is known of the new version, for ever."""
    chosen = spec.hyperparameters
    return Manifest(
        base_model=job.base_model,
        base_revision=models.base_revision(spec.model_path),
        template_sha256=models.template_sha256(spec.model_path),
        rank=chosen.lora_rank,
        alpha=chosen.lora_alpha,
        target_modules=result.target_modules,
        files={},  # the registry hashes what it stores
        created_at=time.time(),
        job_id=job.job_id,
        dataset_id=dataset.dataset_id,
        dataset_sha256=dataset.sha256,
        method=spec.method,
        seed=spec.seed,
        hyperparameters=chosen.model_dump(),
        libraries=result.libraries,
        metrics=make_metrics(result),
        dtype=spec.serving_dtype,
        references=result.references,
    )


def make_metrics(result: TrainingResult) -> dict[str, float]:
    """The figures that stay with the version and the job."""
    metrics = {
        "train_loss": result.final_loss,
        "steps": float(result.steps),
        "held_out_examples": float(result.held_out_examples),
    }
    for prefix, score in (("base_", result.base), ("", result.tuned)):
        if score is not None:
            metrics |= {
                f"{prefix}held_out_loss": score.loss,
                f"{prefix}held_out_exact_match": score.exact_match,
            }
    return metrics


def describe_release(version: Version, result: TrainingResult) -> str:
    """The job's last event: what is live, and base and new version side by side."""
    live = f"{version.name} is live."
    if result.base is None or result.tuned is None:
        return f"{live} No examples were held out, so nothing is known of how it generalises."
    count = result.held_out_examples
    return (
        f"{live} {_compare(result.base, result.tuned)} "
        f"({count} held-out example{'s' if count != 1 else ''}; base → {version.name})."
    )


def _compare(base: HeldOutScore, tuned: HeldOutScore) -> str:
    return (
        f"Held-out loss {base.loss:.2f} → {tuned.loss:.2f}, "
        f"exact match {base.exact_match:.0%} → {tuned.exact_match:.0%}".replace("%", " %")
    )


def _noted_rollout(job_folder: Path) -> RolloutId | None:
    try:
        note = _RolloutNote.model_validate_json((job_folder / "rollout.json").read_text())
    except FileNotFoundError:
        return None
    return RolloutId(note.rollout_id)
