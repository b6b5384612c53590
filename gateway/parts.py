"""The parts that the control plane is put together from."""

from __future__ import annotations

from dataclasses import dataclass

from adapters_store.registry import Registry
from engines.controller_client import ControllerClient
from finetune.files import FileStore
from finetune.jobs.store import JobStore
from gateway.metrics import Metrics
from gateway.routing.source import SnapshotSource
from gateway.traffic import TrafficLog
from loraway.database import Database
from loraway.settings import Settings


@dataclass(frozen=True, slots=True)
class GatewayParts:
    """Made, started and stopped by the worker process (`gateway/server.py`); shared with the data plane."""

    settings: Settings
    database: Database
    registry: Registry
    snapshots: SnapshotSource
    traffic: TrafficLog
    metrics: Metrics
    controller: ControllerClient
    files: FileStore
    jobs: JobStore
