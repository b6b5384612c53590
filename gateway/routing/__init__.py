"""Where a replica is chosen, and the picture of the fleet that the choice is made on."""

from collections.abc import Callable

from gateway.routing.adapter_affinity import AdapterAffinity
from gateway.routing.least_load import LeastLoad
from gateway.routing.policy import RoutingPolicy
from gateway.routing.round_robin import RoundRobin

#: The names that the setting `gateway.routing_policy` takes.
POLICIES: dict[str, Callable[[], RoutingPolicy]] = {
    "adapter_affinity": AdapterAffinity,
    "least_load": LeastLoad,
    "round_robin": RoundRobin,
}

__all__ = ["POLICIES", "RoutingPolicy"]
