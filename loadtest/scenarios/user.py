"""What all users of a load test share: the key, the model, and questions to ask."""

from __future__ import annotations

import os
import random
from typing import Any, Final

from locust import HttpUser, between

from loadtest.connection import find_connection

CHAT: Final = "/v1/chat/completions"
#: Long enough for a small model on two cores, short enough that a run ends.
MAX_TOKENS: Final = 16
TIMEOUT_SECONDS: Final = 60.0
_QUESTIONS: Final = (
    "What is the capital of France?",
    "Name a colour.",
    "Say hello in Italian.",
    "What is two plus two?",
    "Which day comes after Monday?",
)


class ModelUser(HttpUser):  # type: ignore[misc]  # Locust has no types
    """Asks one model, LORAWAY_MODEL or the first that the gateway lists."""

    abstract = True
    wait_time = between(0.1, 0.5)

    def on_start(self) -> None:
        self.client.headers["authorization"] = f"Bearer {find_connection().api_key}"
        self.model = os.environ.get("LORAWAY_MODEL") or self._first_model()

    def question(self) -> dict[str, Any]:
        """The body of one request."""
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": random.choice(_QUESTIONS)}],
            "max_tokens": MAX_TOKENS,
        }

    def _first_model(self) -> str:
        with self.client.get("/v1/models", name="models", catch_response=True) as answer:
            models = answer.json().get("data") if answer.ok else None
            if not models:
                answer.failure(f"no models: {answer.status_code} {answer.text[:200]}")
                self.environment.runner.quit()
                return ""
            return str(models[0]["id"])
