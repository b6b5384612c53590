"""A user who waits for whole answers; one question in ten is stored."""

from __future__ import annotations

from loadtest.scenarios.user import CHAT, TIMEOUT_SECONDS, ModelUser


class ChatUser(ModelUser):
    """Asks and reads the answer as one JSON body."""

    weight = 2

    def ask(self) -> None:
        self._ask("chat", {})

    def ask_and_store(self) -> None:
        self._ask("chat stored", {"store": True, "metadata": {"source": "loadtest"}})

    def _ask(self, name: str, fields: dict[str, object]) -> None:
        body = self.question() | fields
        with self.client.post(
            CHAT, json=body, name=name, timeout=TIMEOUT_SECONDS, catch_response=True
        ) as answer:
            if not answer.ok:
                answer.failure(f"{answer.status_code} {answer.text[:200]}")
            elif not answer.json()["choices"][0]["message"]["content"]:
                answer.failure("the answer is empty")
            elif "store" in fields and "x-loraway-completion-id" not in answer.headers:
                answer.failure("the answer was to be stored and has no completion id")

    tasks = {ask: 9, ask_and_store: 1}
