"""What the requests of one worker share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from gateway.dataplane.cold import ColdVersions
from gateway.dataplane.upstream import Upstreams
from gateway.record import RequestRecord
from gateway.routing.policy import RoutingPolicy
from gateway.routing.snapshot import Snapshot
from gateway.spans import Spans
from gateway.traffic import TrafficLog
from loraway.settings import GatewaySettings


class Snapshots(Protocol):
    """Where the current snapshot is found (`gateway.routing.source.SnapshotSource`)."""

    current: Snapshot


class RequestEvents(Protocol):
    """Told of each request's start and end (`gateway.metrics.Metrics`)."""

    def on_start(self) -> None:
        """A data-plane request has arrived."""
        ...

    def on_end(self, record: RequestRecord) -> None:
        """It is over."""
        ...


@dataclass(frozen=True, slots=True)
class DataPlane:
    """The parts an exchange calls; put together in `gateway/server.py`."""

    settings: GatewaySettings
    snapshots: Snapshots
    policy: RoutingPolicy
    upstreams: Upstreams
    cold: ColdVersions
    traffic: TrafficLog
    metrics: RequestEvents
    spans: Spans
