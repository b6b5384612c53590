"""Properties of what is loaded where."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engines.plan import (
    Importance,
    Loaded,
    Wanted,
    plan_convergence,
    plan_room,
    rendezvous_order,
)
from loraway.ids import ReplicaId, VersionId

NAMES = [f"a{index}@1.abcdef" for index in range(10)]
WANTED_IMPORTANCE = st.sampled_from([Importance.PREVIOUS, Importance.TARGET])

wanted_lists = st.dictionaries(st.sampled_from(NAMES), WANTED_IMPORTANCE, max_size=8).map(
    lambda chosen: [Wanted(name, importance) for name, importance in chosen.items()]
)


@st.composite
def replicas(draw: st.DrawFn) -> tuple[list[Wanted], list[Loaded], int]:
    """What is wanted, what a replica holds (never more than its slots), and its slots."""
    slots = draw(st.integers(1, 6))
    wanted = draw(wanted_lists)
    importance = {version.engine_name: version.importance for version in wanted}
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=slots))
    unwanted = st.sampled_from([Importance.RETIRED, Importance.BY_NAME])
    loaded = [
        Loaded(
            name,
            importance.get(name) or draw(unwanted),
            used_at=draw(st.floats(0, 100)),
            is_held=draw(st.booleans()),
        )
        for name in names
    ]
    return wanted, loaded, slots


def apply(loaded: list[Loaded], wanted: list[Wanted], unload: tuple[str, ...], load: tuple[str, ...]):
    importance = {version.engine_name: version.importance for version in wanted}
    kept = [item for item in loaded if item.engine_name not in unload]
    return kept + [Loaded(name, importance[name], used_at=200.0) for name in load]


@given(replicas(), st.integers(0, 1))
def test_a_plan_never_fills_more_than_the_slots(replica, spare: int) -> None:
    wanted, loaded, slots = replica
    plan = plan_convergence(wanted, loaded, slots, spare)
    assert len(apply(loaded, wanted, plan.unload, plan.load)) <= slots


@given(replicas(), st.integers(0, 1))
def test_nothing_is_unloaded_for_something_less_important_and_nothing_held_at_all(replica, spare) -> None:
    wanted, loaded, slots = replica
    plan = plan_convergence(wanted, loaded, slots, spare)
    by_name = {item.engine_name: item for item in loaded}
    loads = [version.importance for version in wanted if version.engine_name in plan.load]
    for name in plan.unload:
        victim = by_name[name]
        assert not victim.is_held
        if victim.importance >= Importance.PREVIOUS:
            assert max(loads) > victim.importance


@given(replicas(), st.integers(0, 1))
def test_plans_converge_at_once(replica, spare: int) -> None:
    wanted, loaded, slots = replica
    plan = plan_convergence(wanted, loaded, slots, spare)
    after = apply(loaded, wanted, plan.unload, plan.load)
    again = plan_convergence(wanted, after, slots, spare)
    assert again.load == () and again.unload == ()


@given(replicas())
def test_what_is_left_out_is_less_important_than_all_that_could_have_made_room(replica) -> None:
    wanted, loaded, slots = replica
    plan = plan_convergence(wanted, loaded, slots)
    after = apply(loaded, wanted, plan.unload, plan.load)
    present = {item.engine_name for item in after}
    for version in wanted:
        if version.engine_name not in present:
            assert len(after) == slots
            assert all(item.is_held or item.importance >= version.importance for item in after)


@given(replicas(), st.sampled_from(NAMES), st.sampled_from(Importance), st.booleans())
def test_room_for_a_request_takes_nothing_more_important(replica, name, importance, is_asked_for) -> None:
    _, loaded, slots = replica
    plan = plan_room(Wanted(name, importance), loaded, slots, is_asked_for=is_asked_for)
    if plan is None:
        limit = importance + is_asked_for
        assert sum(item.is_held or item.importance >= limit for item in loaded) >= slots
        return
    by_name = {item.engine_name: item for item in loaded}
    assert len(loaded) - len(plan.unload) + len(plan.load) <= slots
    for victim in plan.unload:
        assert not by_name[victim].is_held
        assert by_name[victim].importance <= importance - (not is_asked_for)


def test_the_least_recently_used_of_the_least_important_makes_room() -> None:
    loaded = [
        Loaded("target@1.abcdef", Importance.TARGET, used_at=1.0),
        Loaded("new@1.abcdef", Importance.BY_NAME, used_at=9.0),
        Loaded("old@1.abcdef", Importance.BY_NAME, used_at=5.0),
    ]
    plan = plan_room(Wanted("cold@1.abcdef", Importance.BY_NAME), loaded, 3, is_asked_for=True)
    assert plan is not None and plan.unload == ("old@1.abcdef",)


def test_an_adapter_of_somebody_else_keeps_its_slot() -> None:
    foreign = [Loaded("theirs", Importance.RETIRED, is_held=True)]
    plan = plan_convergence([Wanted("ours@1.abcdef", Importance.TARGET)], foreign, slots=1)
    assert plan.load == () and plan.unload == ()


@given(
    st.lists(st.sampled_from("abcdefgh"), unique=True, min_size=2),
    st.text(min_size=1, max_size=8),
)
def test_a_version_moves_only_when_its_own_replica_goes(replica_names: list[str], version: str) -> None:
    ids = [ReplicaId(name) for name in replica_names]
    first, *others = rendezvous_order(VersionId(version), ids)
    assert rendezvous_order(VersionId(version), ids[::-1]) == [first, *others]
    for gone in others:
        left = [replica_id for replica_id in ids if replica_id != gone]
        assert rendezvous_order(VersionId(version), left)[0] == first
