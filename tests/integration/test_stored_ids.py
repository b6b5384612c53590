"""The `id` in a stored answer is the id that feedback, list and retrieve know it by, on either engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.stack import BASE, running_simulators, running_stack


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_an_answer_is_stored_under_its_own_id(kind: str, tmp_path: Path) -> None:
    with running_simulators(kind) as engines, running_stack(tmp_path, engines) as stack:
        client = stack.client()
        question = [{"role": "user", "content": "Hi"}]
        whole = client.chat.completions.create(model=BASE, messages=question, store=True)
        stream = client.chat.completions.create(
            model=BASE,
            messages=question,
            store=True,
            stream=True,
        )
        streamed = {chunk.id for chunk in stream}
        assert len(streamed) == 1
        for completion_id in (whole.id, *streamed):
            assert client.chat.completions.retrieve(completion_id).id == completion_id
