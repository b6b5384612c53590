"""Base and new version side by side, on examples that were not trained on; and references for the proof.

One forward pass per model answers everything: given the expected answer as its own prefix, greedy
generation would reproduce it exactly if and only if every expected token is the most likely one. So loss,
exact match and most reference generations come from the same logits, without generating anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch

from adapters_store.manifest import ReferenceGeneration
from finetune.trainers.base_model import LoadedBase
from finetune.trainers.chat import Span, TokenizedChat
from finetune.trainers.completion import completion_logits, pad_batch
from finetune.trainers.protocol import HeldOutScore
from finetune.trainers.spec import Dtype

#: Tokens of a reference generation: enough to tell adapter and base apart, few enough to prove in a moment.
REFERENCE_TOKENS = 16
#: Of one that must be generated, token by token.
_GENERATED_TOKENS = 8
#: A reference ends before a token that another one could overtake by rounding (difference of logprobs).
_SAFE_MARGIN: dict[Dtype, float] = {"float32": 0.1, "bfloat16": 0.6, "float16": 0.3}
#: Training examples looked at for a reference.
_CANDIDATES = 3
#: Held-out examples evaluated, so that evaluation stays a small part of a job.
_HELD_OUT_LIMIT = 200
_BATCH = 8


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What was measured; the scores are None without held-out examples."""

    base: HeldOutScore | None
    tuned: HeldOutScore | None
    references: list[ReferenceGeneration]


@dataclass(frozen=True, slots=True)
class ScoredAnswer:
    """How a model takes the expected completion of a chat (all of its spans, one after the other)."""

    logprobs: list[float]
    #: How far the expected token leads the best other one; negative where it is not the most likely.
    leads: list[float]

    @property
    def is_exact(self) -> bool:
        """Greedy generation would give exactly this answer."""
        return all(lead > 0 for lead in self.leads)


@dataclass(frozen=True, slots=True)
class Answer:
    """A greedy answer of the adapter to a span's prompt, and how sure adapter and base are of it."""

    messages: list[dict[str, str]]
    tokens: list[int]
    tuned: ScoredAnswer
    base_logprobs: list[float]

    @property
    def difference(self) -> float:
        """Between adapter and base: the largest of any token."""
        return max(abs(a - b) for a, b in zip(self.tuned.logprobs, self.base_logprobs, strict=True))

    def cut(self, length: int) -> Answer:
        """Its first so many tokens."""
        scored = ScoredAnswer(self.tuned.logprobs[:length], self.tuned.leads[:length])
        return Answer(self.messages, self.tokens[:length], scored, self.base_logprobs[:length])


@dataclass(frozen=True, slots=True)
class Candidate:
    """A chat that a reference may be made of."""

    messages: list[dict[str, str]]
    chat: TokenizedChat
    tuned: ScoredAnswer
    plain: ScoredAnswer

    @property
    def prompt_tokens(self) -> list[int]:
        return self.chat.tokens[: self.chat.spans[0].start]

    @property
    def is_greedy(self) -> bool:
        """The expected answer is what the adapter generates."""
        return self.tuned.is_exact

    @property
    def answer(self) -> Answer:
        """The expected answer, taken as the generated one."""
        (span,) = self.chat.spans
        return Answer(
            self.messages, self.chat.tokens[span.start : span.stop], self.tuned, self.plain.logprobs
        )


def evaluate(
    model: Any,
    base: LoadedBase,
    train: Sequence[TokenizedChat],
    held_out: Sequence[TokenizedChat],
    serving_dtype: Dtype,
) -> Evaluation:
    """Score the adapter in `model` (a PeftModel) against the base, in the precision it will be served in."""
    held_out = held_out[:_HELD_OUT_LIMIT]
    candidates = sorted(train, key=lambda chat: len(chat.tokens))[:_CANDIDATES]
    chats = [*held_out, *candidates]
    with _inference(model, serving_dtype):
        tuned = score(model.get_base_model(), chats, base.pad_token)
        with model.disable_adapter():
            plain = score(model.get_base_model(), chats, base.pad_token)
        count = len(held_out)
        groups = [
            _candidates(chats[part], tuned[part], plain[part]) for part in (slice(count), slice(count, None))
        ]
        references = _references(model, base, groups, serving_dtype)
    return Evaluation(_held_out_score(plain[:count]), _held_out_score(tuned[:count]), references)


def score(model: Any, chats: Sequence[TokenizedChat], pad_token: int) -> list[ScoredAnswer]:
    """How the model takes each chat's completion tokens, in the chats' order."""
    order = sorted(range(len(chats)), key=lambda index: len(chats[index].tokens))
    scores: dict[int, ScoredAnswer] = {}
    for start in range(0, len(order), _BATCH):
        indices = order[start : start + _BATCH]
        batch = pad_batch([chats[index] for index in indices], pad_token, model.device)
        logits, targets, _ = completion_logits(model, batch)
        sizes = [chats[index].completion_tokens for index in indices]
        for index, rows, expected in zip(indices, logits.split(sizes), targets.split(sizes), strict=True):
            scores[index] = _score_answer(rows, expected)
    return [scores[index] for index in range(len(chats))]


def _score_answer(logits: Any, expected: Any) -> ScoredAnswer:
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    best, places = logprobs.topk(2, dim=-1)
    chosen = logprobs.gather(1, expected[:, None])[:, 0]
    rival = torch.where(places[:, 0] == expected, best[:, 1], best[:, 0])
    return ScoredAnswer(chosen.tolist(), (chosen - rival).tolist())


def _held_out_score(answers: Sequence[ScoredAnswer]) -> HeldOutScore | None:
    if not answers:
        return None
    logprobs = [logprob for answer in answers for logprob in answer.logprobs]
    exact = sum(answer.is_exact for answer in answers)
    return HeldOutScore(loss=-sum(logprobs) / len(logprobs), exact_match=exact / len(answers))


def _references(
    model: Any,
    base: LoadedBase,
    groups: Sequence[Sequence[Candidate]],
    dtype: Dtype,
) -> list[ReferenceGeneration]:
    """One of each group: the greedy answer on which adapter and base differ most.

    Where an expected answer is the greedy one it is known already; only if none of a group is, the
    adapter generates, for all such groups at once.
    """
    answers = [[c.answer for c in group if c.is_greedy] for group in groups]
    unknown = [i for i, group in enumerate(groups) if group and not answers[i]]
    if unknown:
        generated = _generate(model, base, [groups[i][0] for i in unknown])
        for i, answer in zip(unknown, generated, strict=True):
            answers[i] = [answer]
    chosen = []
    for group_answers in answers:
        shortened = [_shorten(answer, base, _SAFE_MARGIN[dtype]) for answer in group_answers]
        usable = [answer for answer in shortened if answer.tokens]
        if usable:
            chosen.append(max(usable, key=lambda answer: answer.difference))
    if not chosen and any(answers):
        # Nothing is certain; the surest first token is better than no proof.
        surest = max(chain.from_iterable(answers), key=lambda answer: answer.tuned.leads[0])
        chosen = [surest.cut(1)]
    return [_as_reference(answer, base) for answer in chosen]


def _candidates(
    chats: Sequence[TokenizedChat], tuned: Sequence[ScoredAnswer], plain: Sequence[ScoredAnswer]
) -> list[Candidate]:
    """The chats with one answer and a plain prompt."""
    return [
        Candidate(prompt, chat, new, old)
        for chat, new, old in zip(chats, tuned, plain, strict=True)
        if len(chat.spans) == 1 and (prompt := _plain_prompt(chat.spans[0]))
    ]


def _generate(model: Any, base: LoadedBase, candidates: Sequence[Candidate]) -> list[Answer]:
    """The adapter's greedy answers, and the base's logprobs of the same tokens."""
    prompts = [candidate.prompt_tokens for candidate in candidates]
    width = max(map(len, prompts))
    padding = [width - len(prompt) for prompt in prompts]
    generated = model.generate(
        input_ids=torch.tensor(
            [[base.pad_token] * pad + prompt for pad, prompt in zip(padding, prompts, strict=True)],
            device=model.device,
        ),
        attention_mask=torch.tensor(
            [[0] * pad + [1] * (width - pad) for pad in padding], device=model.device
        ),
        do_sample=False,
        max_new_tokens=_GENERATED_TOKENS,
        eos_token_id=sorted(base.stop_tokens),
        pad_token_id=base.pad_token,
    )
    answers = [_until_stop(row[width:].tolist(), base.stop_tokens) for row in generated]
    # Scored again without padding on the left: these are the numbers that an engine will be held to.
    chats = [
        TokenizedChat([*prompt, *answer], [Span([], len(prompt), len(prompt) + len(answer))])
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    tuned = score(model.get_base_model(), chats, base.pad_token)
    with model.disable_adapter():
        plain = score(model.get_base_model(), chats, base.pad_token)
    return [
        Answer(candidate.messages, answer, new, old.logprobs)
        for candidate, answer, new, old in zip(candidates, answers, tuned, plain, strict=True)
    ]


def _until_stop(tokens: list[int], stop_tokens: frozenset[int]) -> list[int]:
    end = next((i + 1 for i, token in enumerate(tokens) if token in stop_tokens), len(tokens))
    return tokens[:end]


def _shorten(answer: Answer, base: LoadedBase, margin: float) -> Answer:
    """At most REFERENCE_TOKENS, ending before a token that rounding could change, between characters."""
    certain = next((i for i, lead in enumerate(answer.tuned.leads) if lead < margin), len(answer.tokens))
    length = min(certain, REFERENCE_TOKENS)
    while length and base.tokenizer.decode(answer.tokens[:length]).endswith("�"):
        length -= 1
    return answer.cut(length)


def _as_reference(answer: Answer, base: LoadedBase) -> ReferenceGeneration:
    """Logprobs hold the stop token's too where the answer ends, as engines report it; the text does not."""
    text = base.tokenizer.decode(
        [token for token in answer.tokens if token not in base.stop_tokens], skip_special_tokens=True
    )
    return ReferenceGeneration(
        messages=answer.messages,
        text=text,
        max_tokens=len(answer.tokens),
        logprobs=answer.tuned.logprobs,
        base_logprobs=answer.base_logprobs,
    )


def _plain_prompt(span: Span) -> list[dict[str, str]]:
    """The prompt, if it is plain text that any engine takes; else nothing."""
    if any(message.keys() != {"role", "content"} for message in span.messages):
        return []
    return [{"role": message["role"], "content": message["content"]} for message in span.messages]


@contextmanager
def _inference(model: Any, dtype: Dtype) -> Iterator[None]:
    """No gradients, no dropout, in this precision."""
    model.eval()
    if model.dtype != getattr(torch, dtype):
        model.to(getattr(torch, dtype))
    with torch.inference_mode():
        yield
