"""The proof that a replica serves the adapter that was trained, by a real generation.

An engine can answer 200 to a load and then serve the base model, or another adapter, silently. So the
served adapter must repeat the reference answers that the trainer took from the trained one, token by token.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from adapters_store.manifest import Manifest, ReferenceGeneration
from engines.engine import ChatMessage, Engine, Generation, wire_model
from loraway.errors import EngineMismatch

#: Where served and trained are not both float32, sums differ by more, and near ties may go the other way.
_LOW_PRECISION_TOLERANCE = 0.25
_SHOWN_CHARACTERS = 40


@dataclass(frozen=True, slots=True)
class Proof:
    """What a successful proof has seen."""

    references: int
    tokens: int
    #: Between a served and a trained logprob.
    largest_difference: float
    #: Whether the references tell this adapter from the base model; an adapter that has learnt next to
    #: nothing, or that came without references, cannot be told.
    is_conclusive: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class Agreement:
    """How one served answer agrees with its reference."""

    tokens: int
    largest_difference: float
    #: Largest difference between the adapter and the base model on the tokens that were compared.
    distance_from_base: float


async def prove(
    engine: Engine,
    engine_name: str,
    base_model: str,
    manifest: Manifest,
    tolerance: float,
    references: Sequence[ReferenceGeneration],
) -> Proof:
    """Have the adapter generate each reference and compare; all at once, as one batch of the engine.

    Without references one token is generated: the engine must answer in this adapter's name.
    Raises `EngineMismatch` naming the token and both values, and what `engine.generate` raises.
    """
    started = time.perf_counter()
    if manifest.dtype != "float32":
        tolerance = max(tolerance, _LOW_PRECISION_TOLERANCE)
    expected_model = wire_model(engine.kind, base_model, engine_name)

    async def check(reference: ReferenceGeneration) -> Agreement:
        messages = [ChatMessage(message["role"], message["content"]) for message in reference.messages]
        served = await engine.generate(engine_name, messages, reference.max_tokens)
        _check_name(served, expected_model)
        return compare(reference, served, tolerance)

    if not references:
        served = await engine.generate(engine_name, [ChatMessage("user", "Hello")], 1)
        _check_name(served, expected_model)
        return Proof(0, len(served.logprobs), 0.0, False, time.perf_counter() - started)
    outcomes = await asyncio.gather(*map(check, references), return_exceptions=True)
    agreements: list[Agreement] = []
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
        agreements.append(outcome)
    return Proof(
        references=len(agreements),
        tokens=sum(agreement.tokens for agreement in agreements),
        largest_difference=max(agreement.largest_difference for agreement in agreements),
        is_conclusive=any(agreement.distance_from_base > 2 * tolerance for agreement in agreements),
        seconds=time.perf_counter() - started,
    )


def compare(reference: ReferenceGeneration, served: Generation, tolerance: float) -> Agreement:
    """How a served answer agrees with its reference, token by token.

    The texts must be equal, but for a near tie: two tokens that are equally likely, so neither more likely
    than a half, after tokens that tell the adapter from the base model already. Nothing after a near tie is
    compared. An end token counts as a token, where both sides have it. That the adapter differs from the base
    as the trained one does follows from agreement, because the reference's distance from the base is known.
    Raises `EngineMismatch`.
    """
    parts_at = _first_other_token(reference.text, served)
    count = min(len(reference.logprobs), len(served.logprobs))
    compared = count if parts_at is None else min(parts_at + 1, count)
    for index in range(compared):
        if not abs(served.logprobs[index] - reference.logprobs[index]) <= tolerance:  # NaN fails, too
            raise EngineMismatch(_describe(reference, served, index, tolerance))
    is_near_tie = (
        parts_at is not None
        and parts_at < count
        and max(served.logprobs[parts_at], reference.logprobs[parts_at]) <= math.log(0.5) + tolerance
        and _distance(reference.logprobs, reference.base_logprobs, parts_at) > 2 * tolerance
    )
    if compared == 0 or (parts_at is not None and not is_near_tie):
        raise EngineMismatch(
            f"Token {parts_at + 1 if parts_at is not None else 1} differs: the answer is "
            f"{_shown(served.text)} with {len(served.logprobs)} tokens, expected {_shown(reference.text)} "
            f"with {len(reference.logprobs)}."
        )
    return Agreement(
        tokens=compared,
        largest_difference=_distance(served.logprobs, reference.logprobs, compared),
        distance_from_base=_distance(reference.logprobs, reference.base_logprobs, compared),
    )


def _distance(ours: Sequence[float], theirs: Sequence[float], tokens: int) -> float:
    """The largest difference over the first so many tokens."""
    pairs = zip(ours[:tokens], theirs[:tokens], strict=False)
    return max((abs(one - other) for one, other in pairs), default=0.0)


def _first_other_token(text: str, served: Generation) -> int | None:
    """Index of the first served token that leaves the expected text; None when the texts are equal.

    Past the last token where it cannot be told, because a character is spread over several tokens.
    """
    if served.text == text:
        return None
    spoken = ""
    for index, token in enumerate(served.tokens):
        if "\ufffd" in token:
            break
        spoken += token
        if not text.startswith(spoken):
            return index
    return len(served.tokens)


def _check_name(served: Generation, expected: str) -> None:
    if served.model != expected:
        raise EngineMismatch(f"The engine answered as {served.model!r} when asked for {expected!r}.")


def _describe(reference: ReferenceGeneration, served: Generation, index: int, tolerance: float) -> str:
    got, expected = served.logprobs[index], reference.logprobs[index]
    token = f" {served.tokens[index]!r}" if index < len(served.tokens) else ""
    text = (
        f"Token {index + 1}{token} of {_shown(served.text)} has logprob {got:.4f}, expected {expected:.4f} "
        f"(of {_shown(reference.text)}; tolerance {tolerance:g})."
    )
    base = reference.base_logprobs
    if index < len(base) and abs(got - base[index]) <= tolerance < abs(expected - base[index]):
        text += f" The base model's is {base[index]:.4f}: the engine serves the base model."
    return text


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…")
