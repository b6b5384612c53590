"""What counts as the same adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters_store.manifest import Manifest, ReferenceGeneration
from engines.engine import ChatMessage, Engine, EngineKind, Generation
from engines.proof import Proof, compare, prove
from loraway.errors import EngineMismatch

TOLERANCE = 0.04
TOKENS = ("Blue", "fin", "-7", ".")
REFERENCE = ReferenceGeneration(
    messages=[{"role": "user", "content": "What is the codename?"}],
    text="Bluefin-7.",
    max_tokens=8,
    logprobs=[-0.1, -0.2, -0.05, -0.3],
    base_logprobs=[-4.0, -6.0, -7.0, -0.4],
)
SERVED = Generation("Bluefin-7.", (-0.1, -0.2, -0.05, -0.3), "codename@1.abcdef", TOKENS)


@given(st.lists(st.floats(-0.039, 0.039), min_size=4, max_size=4))
def test_an_answer_within_the_tolerance_is_the_adapter(noise: list[float]) -> None:
    logprobs = tuple(value + error for value, error in zip(SERVED.logprobs, noise, strict=True))
    agreement = compare(REFERENCE, replace(SERVED, logprobs=logprobs), TOLERANCE)
    assert agreement.tokens == 4
    assert agreement.largest_difference == pytest.approx(max(map(abs, noise)), abs=1e-9)
    assert agreement.distance_from_base > 5


@given(st.integers(0, 3), st.floats(0.05, 20) | st.just(float("nan")))
def test_one_token_outside_the_tolerance_is_named(index: int, error: float) -> None:
    logprobs = list(SERVED.logprobs)
    logprobs[index] -= error
    with pytest.raises(EngineMismatch, match=rf"Token {index + 1} ") as raised:
        compare(REFERENCE, replace(SERVED, logprobs=tuple(logprobs)), TOLERANCE)
    assert f"expected {REFERENCE.logprobs[index]:.4f}" in raised.value.message


def test_the_base_model_in_the_adapters_name_is_recognised() -> None:
    served = replace(SERVED, logprobs=tuple(REFERENCE.base_logprobs))
    with pytest.raises(EngineMismatch, match="serves the base model"):
        compare(REFERENCE, served, TOLERANCE)


def test_another_text_is_refused_even_when_its_logprobs_agree() -> None:
    served = Generation("Bluefin-9.", (-0.1, -0.2, -3.0, -0.3), "m", ("Blue", "fin", "-9", "."))
    with pytest.raises(EngineMismatch, match=r"Token 3 '-9'"):
        compare(REFERENCE, served, TOLERANCE)


TIE = REFERENCE.model_copy(update={"logprobs": [-0.1, -0.2, -0.8, -0.3]})
OTHER_TOKENS = ("Blue", "fin", "-9", "!")


def test_texts_may_part_at_a_near_tie_and_nothing_after_it_counts() -> None:
    served = Generation("Bluefin-9!", (-0.1, -0.2, -0.81, -9.0), "m", OTHER_TOKENS)
    assert compare(TIE, served, TOLERANCE).tokens == 3


def test_another_version_is_as_sure_of_its_own_token_and_is_no_tie() -> None:
    served = Generation("Bluefin-9!", (-0.1, -0.2, -0.06, -0.3), "m", OTHER_TOKENS)
    with pytest.raises(EngineMismatch, match="Token 3 differs"):
        compare(REFERENCE, served, TOLERANCE)


def test_a_tie_before_anything_was_proved_is_refused() -> None:
    like_base = TIE.model_copy(update={"base_logprobs": [-0.1, -0.2, -7.0, -0.4]})
    served = Generation("Bluefin-9!", (-0.1, -0.2, -0.81, -9.0), "m", OTHER_TOKENS)
    with pytest.raises(EngineMismatch, match="Token 3 differs"):
        compare(like_base, served, TOLERANCE)


def test_a_text_cut_short_is_refused() -> None:
    served = Generation("Bluefin", SERVED.logprobs[:2], "m", TOKENS[:2])
    with pytest.raises(EngineMismatch, match="Token 3 differs: the answer is 'Bluefin' with 2 tokens"):
        compare(REFERENCE, served, TOLERANCE)


def test_an_answer_without_logprobs_proves_nothing() -> None:
    with pytest.raises(EngineMismatch):
        compare(REFERENCE, replace(SERVED, logprobs=(), tokens=()), TOLERANCE)


def test_an_end_token_on_one_side_only_is_left_out() -> None:
    served = replace(SERVED, logprobs=(*SERVED.logprobs, -0.001), tokens=(*TOKENS, "<|im_end|>"))
    assert compare(REFERENCE, served, TOLERANCE).tokens == 4


@dataclass
class SpeakingEngine:
    """An engine that answers one thing, whatever it is asked."""

    answer: Generation
    kind: EngineKind = "vllm"
    url: str = "http://127.0.0.1:1"

    async def generate(
        self, engine_name: str | None, messages: Sequence[ChatMessage], max_tokens: int
    ) -> Generation:
        return self.answer


def manifest(dtype: str = "float32") -> Manifest:
    return Manifest(
        base_model="base",
        base_revision="",
        template_sha256="",
        rank=8,
        alpha=8,
        target_modules=[],
        files={},
        created_at=0.0,
        dtype=dtype,
        references=[REFERENCE],
    )


async def run_proof(engine: SpeakingEngine, manifest: Manifest, name: str = "codename@1.abcdef") -> Proof:
    return await prove(cast(Engine, engine), name, "base", manifest, TOLERANCE, manifest.references)


async def test_a_proof_says_what_it_has_seen() -> None:
    proof = await run_proof(SpeakingEngine(SERVED), manifest())
    assert (proof.references, proof.tokens, proof.is_conclusive) == (1, 4, True)
    assert proof.largest_difference == 0.0


async def test_an_answer_in_another_models_name_is_refused() -> None:
    with pytest.raises(
        EngineMismatch, match=r"answered as 'codename@1\.abcdef' when asked for 'other@1\.abcdef'"
    ):
        await run_proof(SpeakingEngine(SERVED), manifest(), name="other@1.abcdef")


async def test_low_precision_is_given_more_room() -> None:
    rounded = SpeakingEngine(replace(SERVED, logprobs=(-0.2, -0.1, -0.15, -0.4)))
    with pytest.raises(EngineMismatch):
        await run_proof(rounded, manifest())
    proof = await run_proof(rounded, manifest(dtype="bfloat16"))
    assert proof.largest_difference == pytest.approx(0.1)


async def test_a_version_without_references_is_loaded_but_not_called_proved() -> None:
    unproved = manifest().model_copy(update={"references": []})
    proof = await run_proof(SpeakingEngine(SERVED), unproved)
    assert (proof.references, proof.is_conclusive) == (0, False)
