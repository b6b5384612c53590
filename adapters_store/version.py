"""The nouns of the registry: versions, aliases, adapters and rollouts."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from adapters_store.manifest import Manifest
from loraway.ids import AdapterId, ProjectId, RolloutId, VersionId


class VersionState(StrEnum):
    """Where a version is in its life."""

    #: Stored; no alias has ever pointed at it.
    REGISTERED = "registered"
    #: An alias points at it, or did.
    SERVING = "serving"
    #: Not to be loaded any more.
    RETIRED = "retired"


@dataclass(frozen=True, slots=True)
class Version:
    """An immutable set of weights of an adapter."""

    version_id: VersionId
    adapter_id: AdapterId
    adapter_name: str
    project_id: ProjectId
    number: int
    #: What engines call it: `name@number.suffix`, unique over all projects and never used again.
    engine_name: str
    #: Absolute; holds `adapter_model.safetensors`, `adapter_config.json` and `loraway.json`.
    path: Path
    rank: int
    base_model: str
    state: VersionState
    manifest: Manifest
    job_id: str | None
    created_at: float

    @property
    def name(self) -> str:
        """What clients call it: `codename@1`."""
        return f"{self.adapter_name}@{self.number}"


@dataclass(frozen=True, slots=True)
class Alias:
    """What clients put in `model`; only aliases move."""

    name: str
    project_id: ProjectId
    version_id: VersionId
    #: Where a rollback goes.
    previous_version_id: VersionId | None
    updated_at: float


@dataclass(frozen=True, slots=True)
class AdapterSummary:
    """One adapter of a project as a list shows it."""

    adapter_id: AdapterId
    project_id: ProjectId
    name: str
    base_model: str
    created_at: float
    version_count: int
    #: The alias of the same name, once a version was rolled out.
    alias: Alias | None
    #: `codename@2`: the version the alias points at.
    serving: str | None


class RolloutState(StrEnum):
    """Where a rollout is."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"

    @property
    def is_terminal(self) -> bool:
        return self in (RolloutState.DONE, RolloutState.FAILED)


@dataclass(frozen=True, slots=True)
class Rollout:
    """A version on its way to the replicas, then under its alias."""

    rollout_id: RolloutId
    project_id: ProjectId
    alias: str
    version_id: VersionId
    state: RolloutState
    #: The inner part of OpenAI's error body (`message`, `type`, `param`, `code`) when it failed.
    error: dict[str, str | None] | None
    #: Per replica: load and proof times in seconds, largest logprob difference.
    report: dict[str, Any] | None
    created_at: float
    finished_at: float | None
