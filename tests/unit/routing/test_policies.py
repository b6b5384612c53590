"""Routing policies as pure decisions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.routing import POLICIES
from gateway.routing.adapter_affinity import AdapterAffinity
from gateway.routing.least_load import LeastLoad
from gateway.routing.round_robin import RoundRobin
from gateway.routing.snapshot import Replica, Snapshot, Target
from loraway.ids import ReplicaId, VersionId

BASE = "tiny"
VERSIONS = [VersionId(f"version-{n}") for n in range(3)]


def replica(
    number: int, *loaded: VersionId, ready: bool = True, running: int = 0, waiting: int = 0
) -> Replica:
    return Replica(
        ReplicaId(f"replica-{number}"),
        "vllm",
        "127.0.0.1",
        9000 + number,
        BASE,
        frozenset(loaded),
        ready,
        running,
        waiting,
    )


def fleet(*replicas: Replica) -> Snapshot:
    return Snapshot(replicas={BASE: replicas})


def adapter(version_id: VersionId) -> Target:
    return Target(BASE, "codename@1", version_id, "codename@1.aaaaaa")


base = Target(BASE, BASE)


@st.composite
def fleets(draw: st.DrawFn) -> Snapshot:
    count = draw(st.integers(0, 6))
    return fleet(
        *(
            replica(
                number,
                *draw(st.sets(st.sampled_from(VERSIONS))),
                ready=draw(st.booleans()),
                running=draw(st.integers(0, 5)),
            )
            for number in range(count)
        )
    )


@pytest.mark.parametrize("name", POLICIES)
@given(
    snapshot=fleets(),
    version_id=st.sampled_from([None, *VERSIONS]),
    in_flight=st.dictionaries(
        st.sampled_from([ReplicaId(f"replica-{n}") for n in range(6)]), st.integers(0, 9)
    ),
    tried=st.sets(st.sampled_from([ReplicaId(f"replica-{n}") for n in range(6)]), max_size=3),
)
def test_choice_is_ready_has_the_version_and_is_made_whenever_there_is_one(
    name: str,
    snapshot: Snapshot,
    version_id: VersionId | None,
    in_flight: dict[ReplicaId, int],
    tried: set[ReplicaId],
) -> None:
    policy = POLICIES[name]()
    target = base if version_id is None else adapter(version_id)
    able = {
        each.replica_id
        for each in snapshot.replicas[BASE]
        if each.is_ready
        and (version_id is None or version_id in each.loaded)
        and each.replica_id not in tried
    }
    for _ in range(4):
        chosen = policy.choose(snapshot, target, in_flight, tried)
        assert chosen is None if not able else chosen is not None and chosen.replica_id in able


def test_adapter_goes_to_its_replica_with_the_fewest_of_our_requests() -> None:
    version_id = VERSIONS[0]
    snapshot = fleet(replica(0), replica(1, version_id), replica(2, version_id))
    in_flight = {ReplicaId("replica-0"): 0, ReplicaId("replica-1"): 3, ReplicaId("replica-2"): 2}

    chosen = AdapterAffinity().choose(snapshot, adapter(version_id), in_flight)

    assert chosen is not None and chosen.replica_id == "replica-2"


@pytest.mark.parametrize("policy", [AdapterAffinity(), LeastLoad()])
def test_base_goes_where_there_is_least_to_do_by_our_count_or_the_engines(
    policy: AdapterAffinity | LeastLoad,
) -> None:
    snapshot = fleet(replica(0, running=4, waiting=3), replica(1, running=1), replica(2))

    chosen = policy.choose(snapshot, base, {ReplicaId("replica-2"): 5})

    assert chosen is not None and chosen.replica_id == "replica-1"


def test_round_robin_gives_each_its_turn_by_target() -> None:
    policy = RoundRobin()
    snapshot = fleet(replica(0, VERSIONS[0]), replica(1, VERSIONS[0]))
    chosen = [policy.choose(snapshot, base, {}) for _ in range(4)]

    assert [each.replica_id for each in chosen if each] == ["replica-0", "replica-1"] * 2
    first = policy.choose(snapshot, adapter(VERSIONS[0]), {})
    assert first is not None and first.replica_id == "replica-0"
