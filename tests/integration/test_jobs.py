"""The job queue under many claimers, lost leases and cancellations, on both databases."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from sqlalchemy import insert, select

from finetune.jobs.job import Cancelled, Failed, Job, JobError, LeasedJob, Outcome, Progress, Succeeded
from finetune.jobs.lease import Lease, LeaseLost
from finetune.jobs.request import JobRequest
from finetune.jobs.states import JobStage, JobState
from finetune.jobs.store import JobStore
from loraway.database import Database
from loraway.errors import NotFound
from loraway.ids import DatasetId, JobId, ProjectId, VersionId
from loraway.schema import datasets, jobs, projects

PROJECT, OTHER = ProjectId("proj_one"), ProjectId("proj_two")
REQUEST = JobRequest.from_body(
    {"model": "smollm2-135m", "training_file": "file-1", "suffix": "codename"}, max_lora_rank=32
)
SUCCESS = Succeeded(VersionId("version-1"), "codename@1", 1234, {"tuned_loss": 0.1}, "base 3.2, new 0.1")


@dataclass
class FakeClock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(database: Database, clock: FakeClock) -> JobStore:
    with database.write() as connection:
        for project_id in (PROJECT, OTHER):
            connection.execute(insert(projects).values(id=project_id, name=project_id, created_at=0.0))
    return JobStore(database, lease_seconds=15.0, clock=clock)


def claim(store: JobStore, owner: str = "trainer-1") -> LeasedJob:
    leased = store.claim(owner)
    assert leased is not None
    return leased


def messages(store: JobStore, job: Job) -> list[str]:
    return [event.message for event in store.events(PROJECT, job.job_id, limit=100).items]


def test_a_job_goes_from_queued_to_succeeded_and_its_last_event_says_how(
    store: JobStore, database: Database
) -> None:
    job = store.create(PROJECT, REQUEST)
    assert (job.status, job.request, job.attempts) == (JobState.QUEUED, REQUEST, 0)

    leased = claim(store)
    assert leased.job.job_id == job.job_id and leased.job.status is JobState.RUNNING
    with database.write() as connection:
        connection.execute(
            insert(datasets).values(
                id="dataset-1", project_id=PROJECT, sha256="0", folder="f", manifest={}, created_at=0.0
            )
        )
    store.set_dataset(leased.lease, DatasetId("dataset-1"), {"n_epochs": 7, "learning_rate": 2e-3})
    store.set_stage(leased.lease, JobStage.TRAINING)
    store.progress(leased.lease, Progress(3, 14, 0.5, learning_rate=2e-3, seconds_left=44.0))
    store.add_checkpoint(leased.lease, 3, {"train_loss": 0.5})
    store.add_checkpoint(leased.lease, 3, {"train_loss": 0.6})
    running = store.get(PROJECT, job.job_id)
    assert running.stage is JobStage.TRAINING and running.estimated_finish == 1044.0
    assert running.progress == Progress(3, 14, 0.5, learning_rate=2e-3, seconds_left=44.0)
    assert running.hyperparameters == {"n_epochs": 7, "learning_rate": 2e-3}
    assert [point.metrics for point in store.checkpoints(PROJECT, job.job_id).items] == [{"train_loss": 0.5}]

    ended = store.finish(leased.lease, SUCCESS)

    assert (ended.status, ended.fine_tuned_model) == (JobState.SUCCEEDED, "codename@1")
    assert ended.metrics == {"tuned_loss": 0.1} and ended.trained_tokens == 1234
    assert messages(store, job)[0] == "base 3.2, new 0.1"
    figures = [event for event in store.events(PROJECT, job.job_id).items if event.type == "metrics"]
    assert figures[0].data is not None and figures[0].data["step"] == 3
    assert store.claim("trainer-2") is None


def test_jobs_are_claimed_oldest_first_and_one_at_a_time(store: JobStore) -> None:
    ids = [store.create(PROJECT, REQUEST).job_id for _ in range(3)]
    assert [claim(store).job.job_id for _ in range(3)] == ids
    assert store.claim("trainer-1") is None


def _stage(store: JobStore, lease: Lease) -> None:
    store.set_stage(lease, JobStage.TRAINING)


def _progress(store: JobStore, lease: Lease) -> None:
    store.progress(lease, Progress(1, 2, 0.5))


def _event(store: JobStore, lease: Lease) -> None:
    store.add_event(lease, "late")


def _dataset(store: JobStore, lease: Lease) -> None:
    store.set_dataset(lease, DatasetId("dataset-1"), {})


def _checkpoint(store: JobStore, lease: Lease) -> None:
    store.add_checkpoint(lease, 1, {})


def _heartbeat(store: JobStore, lease: Lease) -> None:
    store.heartbeat(lease)


def _finish(store: JobStore, lease: Lease) -> None:
    store.finish(lease, SUCCESS)


def _requeue(store: JobStore, lease: Lease) -> None:
    store.requeue(lease, "late")


WRITES = [_stage, _progress, _event, _dataset, _checkpoint, _heartbeat, _finish, _requeue]


@pytest.mark.parametrize("write", WRITES)
def test_a_silent_trainer_loses_the_job_and_none_of_its_later_writes_counts(
    store: JobStore, clock: FakeClock, database: Database, write: Callable[[JobStore, Lease], None]
) -> None:
    store.create(PROJECT, REQUEST)
    old = claim(store, "trainer-1")
    assert store.claim("trainer-2") is None
    clock.now += 15.1
    new = claim(store, "trainer-2")
    assert new.job.job_id == old.job.job_id and new.lease.token > old.lease.token
    assert new.job.attempts == 2 and new.job.started_at == 1000.0
    with database.read() as connection:
        before = connection.execute(select(jobs)).one()
    events = messages(store, new.job)

    with pytest.raises(LeaseLost):
        write(store, old.lease)

    with database.read() as connection:
        assert connection.execute(select(jobs)).one() == before
    assert messages(store, new.job) == events
    assert store.heartbeat(new.lease) is False


@pytest.mark.parametrize("write", WRITES)
def test_nothing_is_written_to_a_job_that_has_ended(
    store: JobStore, write: Callable[[JobStore, Lease], None]
) -> None:
    store.create(PROJECT, REQUEST)
    leased = claim(store)
    ended = store.finish(leased.lease, SUCCESS)
    with pytest.raises(LeaseLost):
        write(store, leased.lease)
    assert store.get(PROJECT, ended.job_id) == ended


def test_a_heartbeat_keeps_the_job_and_a_late_one_wins_it_back_unless_taken(
    store: JobStore, clock: FakeClock
) -> None:
    store.create(PROJECT, REQUEST)
    leased = claim(store)
    for _ in range(5):
        clock.now += 10.0
        store.heartbeat(leased.lease)
        assert store.claim("trainer-2") is None
    clock.now += 60.0
    store.heartbeat(leased.lease)
    assert store.claim("trainer-2") is None


def test_a_waiting_job_is_cancelled_at_once(store: JobStore) -> None:
    job = store.create(PROJECT, REQUEST)
    cancelled = store.cancel(PROJECT, job.job_id)
    assert cancelled.status is JobState.CANCELLED and cancelled.finished_at is not None
    assert store.claim("trainer-1") is None
    assert store.cancel(PROJECT, job.job_id) == cancelled


def test_a_running_job_is_cancelled_when_its_trainer_says_so(store: JobStore) -> None:
    job = store.create(PROJECT, REQUEST)
    leased = claim(store)
    assert store.heartbeat(leased.lease) is False

    asked = store.cancel(PROJECT, job.job_id)
    store.cancel(PROJECT, job.job_id)

    assert asked.status is JobState.RUNNING and asked.cancel_requested
    assert messages(store, job).count("Cancellation requested.") == 1
    assert store.heartbeat(leased.lease) is True
    assert store.finish(leased.lease, Cancelled()).status is JobState.CANCELLED


def test_a_job_given_back_waits_again_and_keeps_a_growing_token(store: JobStore) -> None:
    store.create(PROJECT, REQUEST)
    first = claim(store)
    store.requeue(first.lease, "The trainer is shutting down.")
    assert store.get(PROJECT, first.job.job_id).status is JobState.QUEUED
    with pytest.raises(LeaseLost):
        store.heartbeat(first.lease)
    second = claim(store, "trainer-2")
    assert second.lease.token == first.lease.token + 1


def test_a_failed_job_says_why(store: JobStore) -> None:
    store.create(PROJECT, REQUEST)
    leased = claim(store)
    error = JobError("engine_mismatch", "logprobs differ by 1.5", None)
    failed = store.finish(leased.lease, Failed(error))
    assert (failed.status, failed.error) == (JobState.FAILED, error)
    (last,) = store.events(PROJECT, failed.job_id, limit=1).items
    assert last.level == "error" and "logprobs differ by 1.5" in last.message


def test_each_project_sees_and_cancels_its_own_jobs_only(store: JobStore) -> None:
    job = store.create(PROJECT, REQUEST)
    for call in (store.get, store.events, store.checkpoints, store.cancel):
        with pytest.raises(NotFound):
            call(OTHER, job.job_id)
    assert store.list(OTHER).items == []


def test_jobs_and_events_are_listed_page_by_page_newest_first(store: JobStore) -> None:
    ids = [store.create(PROJECT, REQUEST).job_id for _ in range(5)]
    first = store.list(PROJECT, limit=3)
    second = store.list(PROJECT, after=first.items[-1].job_id, limit=3)
    assert [job.job_id for page in (first, second) for job in page.items] == ids[::-1]
    assert (first.has_more, second.has_more) == (True, False)

    leased = claim(store)
    for step in range(1, 8):
        store.progress(leased.lease, Progress(step, 7, 1 / step))
    seen: list[str] = []
    after = None
    while True:
        page = store.events(PROJECT, ids[0], after=after, limit=4)
        seen += [event.message for event in page.items]
        if not page.has_more:
            break
        after = page.items[-1].event_id
    assert len(seen) == 10 and seen[0].startswith("Step 7/7") and seen[-1].startswith("Created")


def test_many_claimers_never_hold_one_job_together(database: Database, store: JobStore) -> None:
    """Each trainer now and then falls silent, so that leases run out under it, too."""
    real = JobStore(database, lease_seconds=0.15)
    total = 20
    for _ in range(total):
        real.create(PROJECT, REQUEST)
    finished: list[tuple[JobId, int]] = []
    failures: list[BaseException] = []
    lock, silence = threading.Lock(), threading.Event()

    def trainer(number: int) -> None:
        dice = random.Random(number)
        try:
            while len(finished) < total:
                leased = real.claim(f"trainer-{number}")
                if leased is None:
                    silence.wait(0.01)
                    continue
                if dice.random() < 0.3:
                    silence.wait(0.3)
                run(leased)
        except BaseException as error:
            failures.append(error)
            raise

    def run(leased: LeasedJob) -> None:
        outcome: Outcome = SUCCESS
        try:
            real.set_stage(leased.lease, JobStage.TRAINING)
            real.finish(leased.lease, outcome)
        except LeaseLost:
            return
        with lock:
            finished.append((leased.job.job_id, leased.lease.token))

    threads = [threading.Thread(target=trainer, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert failures == []
    assert len(finished) == len({job_id for job_id, _ in finished}) == total
    with database.read() as connection:
        rows = connection.execute(select(jobs)).all()
    assert {row.status for row in rows} == {JobState.SUCCEEDED}
    assert {row.id: row.lease_token for row in rows} == dict(finished)
    assert all(row.attempts == row.lease_token for row in rows)
