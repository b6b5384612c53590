"""What the simulated engine will answer, known beforehand: for manifests whose proof must pass."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from adapters_store.manifest import ReferenceGeneration
from loadtest.simulator import answers


def reference_generation(
    adapter_folder: Path, messages: Sequence[dict[str, str]], max_tokens: int
) -> ReferenceGeneration:
    """The reference that a trainer would have taken of this adapter, for the simulated model."""
    mark = answers.weights_mark(adapter_folder)
    count = min(max_tokens, answers.NATURAL_TOKENS)
    tokens = list(islice(answers.answer_tokens(mark, answers.prompt_key(messages)), count))
    return ReferenceGeneration(
        messages=list(messages),
        text="".join(token.text for token in tokens),
        max_tokens=max_tokens,
        logprobs=[token.logprob for token in tokens],
        base_logprobs=answers.base_logprobs(tokens),
    )


def base_answer(messages: Sequence[dict[str, str]], max_tokens: int) -> str:
    """What the simulated base model answers."""
    count = min(max_tokens, answers.NATURAL_TOKENS)
    tokens = islice(answers.answer_tokens(answers.BASE_MARK, answers.prompt_key(messages)), count)
    return "".join(token.text for token in tokens)
