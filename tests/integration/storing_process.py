"""A process that stores completions as fast as it can and prints each id once its answer may end.

Run by `test_traffic_durability.py`, which kills it. What it prints stands for an answer's last byte.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time

import orjson

from gateway.record import RequestRecord
from gateway.traffic import TrafficLog
from loraway.database import Database
from loraway.ids import COMPLETION, ProjectId, new_id
from loraway.settings import TrafficSettings

REQUEST = orjson.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * 900}]})
ANSWER = orjson.dumps(
    {"id": "x", "choices": [{"index": 0, "message": {"role": "assistant", "content": "y"}}]}
)


async def client(traffic: TrafficLog, project: str) -> None:
    while True:
        record = RequestRecord(
            request_id=new_id("req_"),
            path="/v1/chat/completions",
            started_at=time.time(),
            project_id=ProjectId(project),
            model="m",
            base_model="m",
            completion_id=new_id(COMPLETION),
            request_body=REQUEST,
            response_parts=[ANSWER],
            status=200,
        )
        await traffic.store(record)
        os.write(1, f"{record.completion_id}\n".encode())


async def main(url: str, project: str) -> None:
    traffic = TrafficLog(Database(url), TrafficSettings())
    traffic.start()
    await asyncio.gather(*(client(traffic, project) for _ in range(50)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
