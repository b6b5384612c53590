"""The traffic log on real databases: committed before it says so, refusing what it cannot keep."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from typing import Any

import orjson
import pytest
from sqlalchemy import func, insert, select

from gateway.record import RequestRecord
from gateway.traffic import NotStored, TrafficLog
from loraway import schema
from loraway.database import Database
from loraway.errors import LorawayError, UpstreamFailed
from loraway.ids import COMPLETION, ProjectId, new_id
from loraway.settings import TrafficSettings

PROJECT = ProjectId("proj_traffic")
ANSWER = {
    "id": "x",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}],
}


def record(answer: bytes = orjson.dumps(ANSWER), project: str = PROJECT, **fields: Any) -> RequestRecord:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hello"}], "metadata": {"topic": "t"}}
    return RequestRecord(
        request_id=new_id("req_"),
        path="/v1/chat/completions",
        started_at=time.time(),
        started=time.perf_counter(),
        project_id=ProjectId(project),
        model="m",
        target_name="m",
        base_model="m",
        completion_id=new_id(COMPLETION),
        request_body=orjson.dumps(body),
        response_parts=[answer],
        status=200,
        **fields,
    )


@pytest.fixture
def database(database: Database) -> Database:
    """With the project that everything here belongs to."""
    with database.write() as connection:
        connection.execute(insert(schema.projects).values(id=PROJECT, name="traffic", created_at=1.0))
    return database


def stored_ids(database: Database) -> set[str]:
    with database.read() as connection:
        return set(connection.execute(select(schema.completions.c.id)).scalars())


async def test_a_record_is_committed_once_its_future_is_done(database: Database) -> None:
    traffic = TrafficLog(database, TrafficSettings())
    traffic.start()
    mine = record()

    await traffic.store(mine)

    with database.read() as connection:
        row = connection.execute(select(schema.completions)).mappings().one()
        pair = connection.execute(select(schema.completion_metadata)).mappings().one()
    assert row["id"] == mine.completion_id
    assert orjson.loads(row["response"])["choices"] == ANSWER["choices"]
    assert row["metadata"] == {"topic": "t"}
    assert row["created_at"] == mine.started_at
    assert (pair["completion_id"], pair["key"], pair["value"]) == (mine.completion_id, "topic", "t")
    assert (traffic.stored, traffic.failed, traffic.waiting) == (1, 0, 0)
    await traffic.stop()


async def test_a_stream_is_stored_as_the_answer_it_amounts_to(database: Database) -> None:
    traffic = TrafficLog(database, TrafficSettings())
    traffic.start()
    chunk = {"id": "x", "created": 1, "model": "m", "choices": [{"index": 0, "delta": {"content": "Hi"}}]}
    stream = b"data: " + orjson.dumps(chunk) + b"\n\ndata: [DONE]\n\n"

    await traffic.store(record(stream, is_stream=True))

    with database.read() as connection:
        row = connection.execute(select(schema.completions)).mappings().one()
    assert row["is_stream"] is True
    assert orjson.loads(row["response"])["choices"][0]["message"]["content"] == "Hi"
    await traffic.stop()


async def test_many_records_at_once_are_all_stored(database: Database) -> None:
    traffic = TrafficLog(database, TrafficSettings())
    traffic.start()
    records = [record() for _ in range(1500)]

    await asyncio.gather(*(traffic.store(each) for each in records))

    assert stored_ids(database) == {each.completion_id for each in records}
    await traffic.stop()


async def test_stopping_writes_what_was_handed_over(database: Database) -> None:
    traffic = TrafficLog(database, TrafficSettings(flush_seconds=0.2))
    traffic.start()
    futures = [traffic.store(record()) for _ in range(40)]

    await traffic.stop()
    await asyncio.gather(*futures)

    assert len(stored_ids(database)) == 40
    with pytest.raises(NotStored):
        traffic.store(record())


async def test_a_record_the_database_refuses_does_not_take_its_batch_with_it(database: Database) -> None:
    traffic = TrafficLog(database, TrafficSettings(flush_seconds=0.1))
    traffic.start()
    await traffic.store(record())  # so that the next ones wait for each other
    good = [record(), record()]
    futures = [
        traffic.store(good[0]),
        traffic.store(record(project="proj_unknown")),
        traffic.store(record(b"<html>")),
        traffic.store(good[1]),
    ]

    results = await asyncio.gather(*futures, return_exceptions=True)

    assert [type(result) for result in results] == [type(None), NotStored, UpstreamFailed, type(None)]
    assert {each.completion_id for each in good} <= stored_ids(database)
    assert (traffic.stored, traffic.failed) == (3, 2)
    await traffic.stop()


async def test_beyond_the_limit_the_caller_is_told_at_once(database: Database) -> None:
    traffic = TrafficLog(database, TrafficSettings(flush_seconds=0.5, queue_limit=2))
    traffic.start()
    await traffic.store(record())
    waiting = [traffic.store(record()), traffic.store(record())]

    with pytest.raises(NotStored, match="2 completions"):
        traffic.store(record())

    await asyncio.gather(*waiting)
    assert len(stored_ids(database)) == 3
    await traffic.stop()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_a_busy_database_is_waited_for(database: Database, sqlite_url: str) -> None:
    traffic = TrafficLog(database, TrafficSettings())
    traffic.start()
    await traffic.store(record())
    lock = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")

    future = traffic.store(record())
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(future), 0.3)
    lock.execute("ROLLBACK")
    await asyncio.wait_for(future, 30)

    assert len(stored_ids(database)) == 2
    lock.close()
    await traffic.stop()


async def test_a_database_that_stays_away_is_told_to_the_caller() -> None:
    unreachable = Database("postgresql+psycopg://loraway@127.0.0.1:1/none?connect_timeout=1")
    traffic = TrafficLog(unreachable, TrafficSettings(), retry_seconds=0.3)
    traffic.start()

    with pytest.raises(NotStored) as told:
        await asyncio.wait_for(traffic.store(record()), 30)

    assert isinstance(told.value, LorawayError)
    assert told.value.status == 503
    await traffic.stop()


async def test_a_caller_that_went_away_does_not_stop_the_writer(database: Database) -> None:
    traffic = TrafficLog(database, TrafficSettings(flush_seconds=0.05))
    traffic.start()
    traffic.store(record()).cancel()

    await traffic.store(record())

    with database.read() as connection:
        count = connection.execute(select(func.count()).select_from(schema.completions)).scalar_one()
    assert count == 2
    await traffic.stop()
