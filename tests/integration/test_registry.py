"""The registry on a real disk and both databases."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import insert, select

from adapters_store.manifest import Manifest
from adapters_store.registry import Registry
from adapters_store.version import RolloutState, Version, VersionState
from loraway.database import Database, read_revision
from loraway.errors import Conflict, EngineMismatch, InvalidRequest, NotFound
from loraway.ids import ProjectId, RolloutId, VersionId
from loraway.schema import alias_moves, base_models, projects

PROJECT = ProjectId("proj_one")
OTHER = ProjectId("proj_two")
BASE = "smollm2-135m"


def write_adapter(folder: Path, rank: int = 16, weight: bytes = b"\0\0\0\0") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    header = json.dumps({"lora_A": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    tensors = struct.pack("<Q", len(header)) + header + weight
    (folder / "adapter_model.safetensors").write_bytes(tensors)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank}))
    (folder / "README.md").write_text("model card")
    return folder


def manifest(rank: int = 16, **fields: object) -> Manifest:
    return Manifest.model_validate(
        {
            "base_model": BASE,
            "base_revision": "r1",
            "template_sha256": "t1",
            "rank": rank,
            "alpha": 32,
            "target_modules": ["q_proj"],
            "files": {},
            "created_at": 1.0,
            **fields,
        }
    )


Register = Callable[..., Version]


@pytest.fixture
def registry(database: Database, tmp_path: Path) -> Registry:
    with database.write() as connection:
        for project_id in (PROJECT, OTHER):
            connection.execute(insert(projects).values(id=project_id, name=project_id, created_at=0.0))
        connection.execute(
            insert(base_models).values(
                name=BASE, path="/m", revision="r1", template_sha256="t1", created_at=0.0
            )
        )
    return Registry(database, tmp_path / "blobs" / "adapters")


@pytest.fixture
def register(registry: Registry, tmp_path: Path) -> Register:
    folder = write_adapter(tmp_path / "trained")

    def call(name: str = "codename", job_id: str | None = None, project_id: ProjectId = PROJECT) -> Version:
        return registry.register(project_id, name, BASE, folder, manifest(), job_id)

    return call


def test_versions_of_a_name_are_numbered_and_hold_exactly_the_adapter_and_its_manifest(
    registry: Registry, register: Register
) -> None:
    first, second = register(), register()

    assert (first.name, second.name) == ("codename@1", "codename@2")
    assert first.engine_name == f"codename@1.{first.version_id[-6:]}" != second.engine_name
    names = sorted(path.name for path in first.path.iterdir())
    assert names == ["adapter_config.json", "adapter_model.safetensors", "loraway.json"]
    stored = Manifest.model_validate_json((first.path / "loraway.json").read_bytes())
    assert stored == first.manifest == registry.version(first.version_id).manifest
    assert sorted(stored.files) == ["adapter_config.json", "adapter_model.safetensors"]


def test_a_job_registers_one_version_however_often_it_asks(registry: Registry, register: Register) -> None:
    first = register(job_id="ftjob-1")
    again = register(job_id="ftjob-1")

    assert again == first
    assert registry.versions(PROJECT, "codename") == [first]
    assert len(list(first.path.parent.iterdir())) == 1


@pytest.mark.parametrize("job_ids", [["ftjob-a", "ftjob-b"] * 4, ["ftjob-same"] * 8, [None] * 8])
def test_registrations_at_the_same_moment_overwrite_nothing(
    registry: Registry, register: Register, job_ids: list[str | None]
) -> None:
    barrier, made, lock = threading.Barrier(len(job_ids)), list[Version](), threading.Lock()

    def run(job_id: str | None) -> None:
        barrier.wait()
        version = register(job_id=job_id)
        with lock:
            made.append(version)

    threads = [threading.Thread(target=run, args=(job_id,)) for job_id in job_ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    expected = len(set(job_ids)) if job_ids[0] else len(job_ids)
    stored = registry.versions(PROJECT, "codename")
    assert len(made) == len(job_ids)
    assert [version.number for version in stored] == list(range(1, expected + 1))
    assert {version.version_id for version in made} == {version.version_id for version in stored}
    for version in stored:
        registry.verify(version)
    assert len(list(stored[0].path.parent.iterdir())) == expected


def test_each_project_has_its_own_names(registry: Registry, register: Register) -> None:
    mine, theirs = register(), register(project_id=OTHER)

    assert mine.name == theirs.name and mine.path != theirs.path
    found = registry.find(PROJECT, "codename@1")
    assert found is not None and found.version_id == mine.version_id
    with pytest.raises(NotFound):
        registry.move_alias(PROJECT, "codename", theirs.version_id, "rollout")
    with pytest.raises(NotFound):
        registry.request_rollout(PROJECT, "codename", theirs.version_id)


@pytest.mark.parametrize("name", ["", "-x", "Codename", "a:b", "a/b", "../x", "a@1", "x" * 65, "a b", "ü"])
def test_a_name_that_engines_or_folders_would_misread_is_refused(register: Register, name: str) -> None:
    with pytest.raises(InvalidRequest, match="not a valid adapter name"):
        register(name)


def test_a_name_of_a_base_model_is_refused(registry: Registry, register: Register, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="base model"):
        register(BASE)
    version = register()
    with pytest.raises(InvalidRequest, match="base model"):
        registry.move_alias(PROJECT, BASE, version.version_id, "rollout")


def test_an_adapter_stays_on_its_base_model(registry: Registry, register: Register, tmp_path: Path) -> None:
    register()
    with pytest.raises(Conflict, match="belongs to the base model"):
        registry.register(PROJECT, "codename", "other", tmp_path / "trained", manifest(), None)
    assert len(registry.versions(PROJECT, "codename")) == 1


def _remove_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


def _add_pickle(folder: Path) -> None:
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04.")


def _add_link(folder: Path) -> None:
    (folder / "more.json").symlink_to("/etc/passwd")


def _add_folder(folder: Path) -> None:
    (folder / "checkpoint-1.json").mkdir()


def _cut_weights(folder: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


def _break_header(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", 4) + b"{{{{")


def _empty_config(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


@pytest.mark.parametrize(
    "damage",
    [_remove_weights, _add_pickle, _add_link, _add_folder, _cut_weights, _break_header, _empty_config],
)
def test_a_folder_that_is_no_whole_safetensors_adapter_is_refused_and_leaves_nothing(
    registry: Registry, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder = write_adapter(tmp_path / "damaged")
    damage(folder)

    with pytest.raises(InvalidRequest):
        registry.register(PROJECT, "codename", BASE, folder, manifest(), None)

    assert registry.adapters(PROJECT) == []
    assert list((tmp_path / "blobs" / "adapters").iterdir()) == []


def test_files_other_than_the_trainer_described_are_refused(registry: Registry, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "trained")
    wrong = manifest(files={"adapter_model.safetensors": "0" * 64})
    with pytest.raises(InvalidRequest, match="not the one that the manifest describes"):
        registry.register(PROJECT, "codename", BASE, folder, wrong, None)
    with pytest.raises(InvalidRequest, match="rank 16, its manifest says 8"):
        registry.register(PROJECT, "codename", BASE, folder, manifest(rank=8), None)


def test_verify_names_the_file_that_changed(registry: Registry, register: Register) -> None:
    version = register()
    registry.verify(version)
    write_adapter(version.path, weight=b"\0\0\0\1")
    with pytest.raises(Conflict, match=r"adapter_model\.safetensors of codename@1 is not the one"):
        registry.verify(version)
    (version.path / "adapter_config.json").unlink()
    with pytest.raises(Conflict, match=r"adapter_"):
        registry.verify(version)


def test_an_alias_move_is_seen_by_the_gateway_and_goes_back_step_by_step(
    registry: Registry, register: Register, database: Database
) -> None:
    one, two, three = register(), register(), register()
    with pytest.raises(NotFound):
        registry.rollback_target(PROJECT, "codename")

    with database.read() as connection:
        before = read_revision(connection)
    for version in (one, two, three):
        registry.move_alias(PROJECT, "codename", version.version_id, "rollout")
    with database.read() as connection:
        assert read_revision(connection) == before + 3

    found = registry.find(PROJECT, "codename")
    assert found is not None and found.version_id == three.version_id
    assert found.state == VersionState.SERVING
    assert registry.rollback_target(PROJECT, "codename").name == "codename@2"
    registry.move_alias(PROJECT, "codename", two.version_id, "rollout")
    assert registry.rollback_target(PROJECT, "codename").name == "codename@1"
    registry.move_alias(PROJECT, "codename", one.version_id, "rollout")
    with pytest.raises(Conflict, match="no earlier version"):
        registry.rollback_target(PROJECT, "codename")
    registry.move_alias(PROJECT, "codename", three.version_id, "rollout")
    assert registry.rollback_target(PROJECT, "codename").name == "codename@1"


def test_a_move_to_where_the_alias_is_changes_nothing(
    registry: Registry, register: Register, database: Database
) -> None:
    one = register()
    alias = registry.move_alias(PROJECT, "codename", one.version_id, "rollout")
    with database.read() as connection:
        revision = read_revision(connection)

    assert registry.move_alias(PROJECT, "codename", one.version_id, "rollout") == alias
    with database.read() as connection:
        assert read_revision(connection) == revision
    assert alias.previous_version_id is None


def test_moves_at_the_same_moment_come_one_after_the_other(
    registry: Registry, register: Register, database: Database
) -> None:
    made = [register() for _ in range(6)]
    barrier = threading.Barrier(len(made))

    def move(version: Version) -> None:
        barrier.wait()
        registry.move_alias(PROJECT, "codename", version.version_id, "rollout")

    threads = [threading.Thread(target=move, args=(version,)) for version in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    with database.read() as connection:
        moves = connection.execute(select(alias_moves).order_by(alias_moves.c.id)).all()
    assert [move.from_version_id for move in moves] == [None, *(move.to_version_id for move in moves[:-1])]
    alias = registry.alias(PROJECT, "codename")
    assert alias is not None
    assert (alias.version_id, alias.previous_version_id) == (moves[-1].to_version_id, moves[-2].to_version_id)


def test_wanted_versions_come_in_order_of_importance(registry: Registry, register: Register) -> None:
    one, two, three = register(), register(), register()
    other = register("tone")
    registry.move_alias(PROJECT, "codename", one.version_id, "rollout")
    registry.move_alias(PROJECT, "codename", two.version_id, "rollout")

    wanted = [version.version_id for version in registry.wanted_versions(BASE)]

    assert wanted == [v.version_id for v in (two, one, other, three)]
    assert registry.wanted_versions("unknown") == []


def test_adapters_are_listed_with_what_they_serve(registry: Registry, register: Register) -> None:
    register("tone")
    one, _two = register(), register()
    registry.move_alias(PROJECT, "codename", one.version_id, "rollout")

    codename, tone = registry.adapters(PROJECT)

    assert (codename.name, codename.serving, codename.version_count) == ("codename", "codename@1", 2)
    assert (tone.name, tone.serving, tone.alias) == ("tone", None, None)
    assert registry.adapters(OTHER) == []


def test_a_rollout_goes_from_request_to_its_end_once(registry: Registry, register: Register) -> None:
    version = register()
    rollout_id = registry.request_rollout(PROJECT, "codename", version.version_id)
    assert registry.request_rollout(PROJECT, "codename", version.version_id) == rollout_id
    assert [rollout.rollout_id for rollout in registry.pending_rollouts()] == [rollout_id]

    registry.start_rollout(rollout_id)
    assert [rollout.state for rollout in registry.pending_rollouts()] == [RolloutState.RUNNING]
    error = EngineMismatch("logprobs differ by 1.5 on replica-1")
    registry.finish_rollout(rollout_id, RolloutState.FAILED, error, {"replica-1": {"load_seconds": 0.2}})
    registry.finish_rollout(rollout_id, RolloutState.DONE)

    ended = registry.rollout(rollout_id)
    assert ended.state is RolloutState.FAILED and ended.finished_at is not None
    assert ended.error is not None and ended.error["code"] == "engine_mismatch"
    assert ended.report == {"replica-1": {"load_seconds": 0.2}}
    assert registry.pending_rollouts() == []
    assert registry.request_rollout(PROJECT, "codename", version.version_id) != rollout_id
    with pytest.raises(NotFound):
        registry.rollout(RolloutId("rollout-none"))
    with pytest.raises(NotFound):
        registry.version(VersionId("version-none"))


_REGISTER_FOR_EVER = """
    import itertools, sys
    from pathlib import Path
    from adapters_store.manifest import Manifest
    from adapters_store.registry import Registry
    from loraway.database import Database
    url, adapters_dir, folder, text = sys.argv[1:]
    registry = Registry(Database(url), Path(adapters_dir))
    manifest = Manifest.model_validate_json(text)
    print("ready", flush=True)
    for _ in itertools.count():
        registry.register("proj_one", "codename", "smollm2-135m", Path(folder), manifest, None)
"""


def test_a_registration_killed_at_any_moment_leaves_no_half_version(
    registry: Registry, database: Database, tmp_path: Path
) -> None:
    folder, adapters_dir = write_adapter(tmp_path / "trained"), tmp_path / "blobs" / "adapters"
    command = [
        sys.executable,
        "-c",
        textwrap.dedent(_REGISTER_FOR_EVER),
        database.engine.url.render_as_string(),
    ]
    for attempt in range(6):
        process = subprocess.Popen(
            [*command, str(adapters_dir), str(folder), manifest().model_dump_json()],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        time.sleep(0.02 + 0.037 * attempt)  # somewhere inside a registration, each time elsewhere
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()

    stored = registry.versions(PROJECT, "codename")
    assert [version.number for version in stored] == list(range(1, len(stored) + 1))
    for version in stored:
        registry.verify(version)
        assert Manifest.model_validate_json((version.path / "loraway.json").read_bytes()) == version.manifest
    registry.remove_orphans(older_than_seconds=-1.0)
    assert {path.name for path in adapters_dir.iterdir()} == {version.engine_name for version in stored}
    after = registry.register(PROJECT, "codename", BASE, folder, manifest(), None)
    assert after.number == len(stored) + 1
