"""A user who reads answers as they are written; the first token's time is a statistic of its own."""

from __future__ import annotations

import time
from typing import Any

from loadtest.scenarios.user import CHAT, TIMEOUT_SECONDS, ModelUser


class StreamingUser(ModelUser):
    """Asks with `stream`; fires a row `TTFT` beside the whole stream's."""

    weight = 1

    def read_stream(self) -> None:
        body = self.question() | {"stream": True}
        started = time.perf_counter()
        with self.client.post(
            CHAT, json=body, name="chat stream", timeout=TIMEOUT_SECONDS, stream=True, catch_response=True
        ) as answer:
            if not answer.ok:
                answer.failure(f"{answer.status_code} {answer.text[:200]}")
                return
            self._read(answer, started)
            # Locust timed the head only.
            answer.request_meta["response_time"] = (time.perf_counter() - started) * 1000

    def _read(self, answer: Any, started: float) -> None:
        is_done = has_begun = False
        for line in answer.iter_lines(chunk_size=None):
            if line.startswith(b'data: {"error"'):
                answer.failure(line[:200].decode(errors="replace"))
                return
            if line.startswith(b"data: [DONE]"):
                is_done = True
            elif line.startswith(b"data: ") and not has_begun:
                has_begun = True
                self._fire_first_token((time.perf_counter() - started) * 1000)
        if not is_done:
            answer.failure("the stream ended before [DONE]")

    def _fire_first_token(self, milliseconds: float) -> None:
        self.environment.events.request.fire(
            request_type="TTFT",
            name="chat stream",
            response_time=milliseconds,
            response_length=0,
            exception=None,
            context={},
        )

    tasks = [read_stream]
