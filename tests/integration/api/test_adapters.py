"""Adapters, their versions and the way back, with a real controller over a simulated engine."""

from __future__ import annotations

from tests.integration.api.conftest import Deployed
from tests.integration.api.plane import BASE


def test_adapters_and_versions_say_what_serves(deployed: Deployed) -> None:
    deployed.train_and_roll_out()
    deployed.train_and_roll_out()
    http = deployed.plane.http()

    (adapter,) = http.get("/v1/adapters").json()["data"]

    assert (adapter["object"], adapter["name"], adapter["base_model"]) == ("adapter", "codename", BASE)
    assert (adapter["version"], adapter["previous_version"]) == ("codename@2", "codename@1")
    assert adapter["version_count"] == 2
    assert http.get("/v1/adapters/codename").json() == adapter
    versions = http.get("/v1/adapters/codename/versions").json()["data"]
    assert [version["name"] for version in versions] == ["codename@1", "codename@2"]
    assert {version["state"] for version in versions} == {"serving"}
    assert [version["loaded_replicas"] for version in versions] == [1, 1]


def test_a_rollback_moves_the_alias_before_it_answers(deployed: Deployed) -> None:
    deployed.train_and_roll_out()
    deployed.train_and_roll_out()
    http = deployed.plane.http()

    answer = http.post("/v1/adapters/codename/rollback")

    assert answer.status_code == 200, answer.text
    adapter = answer.json()
    assert (adapter["before"], adapter["after"]) == ("codename@2", "codename@1")
    assert adapter["version"] == "codename@1"
    assert http.get("/v1/adapters/codename").json()["version"] == "codename@1"
    target = deployed.plane.parts.snapshots.current.resolve(deployed.plane.mine.project_id, "codename")
    assert target is not None and target.name == "codename@1"
    assert http.get("/v1/models/codename").json()["root"] == "codename@1"


def test_a_version_can_be_named_to_go_back_or_forward_to(deployed: Deployed) -> None:
    for _ in range(3):
        deployed.train_and_roll_out()
    http = deployed.plane.http()
    for version in ("codename@1", "codename@3"):
        answer = http.post("/v1/adapters/codename/rollback", json={"version": version})
        assert answer.status_code == 200, answer.text
        assert answer.json()["version"] == deployed.deployment.pointed_at() == version
    unknown = http.post("/v1/adapters/codename/rollback", json={"version": "codename@9"})
    assert (unknown.status_code, unknown.json()["error"]["param"]) == (404, "version")
    assert deployed.deployment.pointed_at() == "codename@3"


def test_a_rollback_with_nothing_before_is_a_conflict(deployed: Deployed) -> None:
    deployed.train_and_roll_out()
    answer = deployed.plane.http().post("/v1/adapters/codename/rollback")
    assert answer.status_code == 409
    assert answer.json()["error"]["code"] == "conflict"
    assert deployed.deployment.pointed_at() == "codename@1"


def test_a_rollback_to_a_version_that_no_replica_takes_says_so_and_moves_nothing(deployed: Deployed) -> None:
    deployed.train_and_roll_out()
    deployed.train_and_roll_out()
    first = deployed.deployment.registry.versions(deployed.plane.mine.project_id, "codename")[0]

    async def spoil() -> None:
        """The engine has dropped the first version and takes no adapters any more."""
        await deployed.engine.fault("fail_load")
        await deployed.engine.fault("evict", adapter=first.engine_name)

    deployed.portal.call(spoil)
    answer = deployed.plane.http().post("/v1/adapters/codename/rollback")
    assert answer.status_code in (502, 503), answer.text
    assert "did not move" in answer.json()["error"]["message"]
    assert deployed.deployment.pointed_at() == "codename@2"


def test_an_unknown_adapter_is_not_found(deployed: Deployed) -> None:
    http = deployed.plane.http()
    for answer in (
        http.get("/v1/adapters/none"),
        http.get("/v1/adapters/none/versions"),
        http.post("/v1/adapters/none/rollback"),
    ):
        assert answer.status_code == 404
        assert "'none'" in answer.json()["error"]["message"]
