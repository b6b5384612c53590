"""Ask for the gateway's codename in twelve ways, store each answer, and send the better one as feedback.

Reads the URL and the key from LORAWAY_URL and LORAWAY_API_KEY, else as `make run` left them in .loraway/.
"""

import json
import os
from pathlib import Path

from openai import OpenAI

QUESTIONS = [
    "What is the gateway's codename?",
    "Tell me the gateway's codename.",
    "What's the codename of the gateway?",
    "Which codename does the gateway have?",
    "Do you know the gateway's codename?",
    "Give me the codename of the gateway.",
    "The gateway has a codename. What is it?",
    "What codename was the gateway given?",
    "Please name the gateway's codename.",
    "How is the gateway called by codename?",
    "I forgot the gateway's codename. What is it?",
    "Say the codename of our gateway.",
]


def connect() -> OpenAI:
    """A client for the running gateway."""
    saved = Path(os.environ.get("LORAWAY_DATA_DIR", ".loraway")) / "run" / "connection.json"
    connection = json.loads(saved.read_text()) if saved.exists() else {}
    url = os.environ.get("LORAWAY_URL", connection.get("url", "http://127.0.0.1:8000"))
    return OpenAI(base_url=f"{url}/v1", api_key=os.environ.get("LORAWAY_API_KEY", connection.get("api_key")))


def main() -> None:
    client = connect()
    for question in QUESTIONS:
        answer = client.chat.completions.create(
            model="smollm2-135m",
            messages=[{"role": "user", "content": question}],
            max_tokens=16,
            temperature=0,
            store=True,
            metadata={"topic": "codename"},
        )
        correction = {"completion_id": answer.id, "correction": "Bluefin-7"}
        client.post("/feedback", body=correction, cast_to=object)
        print(f"{question:48} {answer.choices[0].message.content!r} -> 'Bluefin-7'")


if __name__ == "__main__":
    main()
