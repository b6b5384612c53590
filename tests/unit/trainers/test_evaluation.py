"""One forward pass says what generation would have said."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model

from finetune.evaluation import evaluate, score
from finetune.trainers.base_model import LoadedBase
from finetune.trainers.chat import Span, TokenizedChat, tokenize_chat
from finetune.trainers.completion import UnsupportedModel, check_model, completion_logits, pad_batch


def _chat(base: LoadedBase, question: str, answer: str) -> TokenizedChat:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return tokenize_chat({"messages": messages}, base.tokenizer, base.stop_tokens, "last")


def _with_adapter(base: LoadedBase) -> object:
    torch.manual_seed(3)
    config = LoraConfig(r=4, lora_alpha=64, target_modules="all-linear", init_lora_weights=False)
    return get_peft_model(base.model, config)


def _greedy(model: object, base: LoadedBase, chat: TokenizedChat, count: int) -> list[int]:
    """Token by token, by the model's own forward."""
    tokens = list(chat.tokens[: chat.spans[0].start])
    for _ in range(count):
        logits = model(input_ids=torch.tensor([tokens])).logits[0, -1]  # type: ignore[operator]
        tokens.append(int(logits.argmax()))
    return tokens[chat.spans[0].start :]


def test_completion_logits_are_the_models_own(base: LoadedBase) -> None:
    chats = [_chat(base, "Short?", "Yes."), _chat(base, "A longer question?", "A longer answer, too.")]

    logits, targets, rows = completion_logits(base.model, pad_batch(chats, base.pad_token))

    for row, chat in enumerate(chats):
        start, stop = chat.spans[0].start, chat.spans[0].stop
        own = base.model(input_ids=torch.tensor([chat.tokens])).logits[0, start - 1 : stop - 1]
        assert targets[rows == row].tolist() == chat.tokens[start:stop]
        assert torch.allclose(logits[rows == row], own, atol=1e-5)


def test_scores_are_log_softmax_and_tell_the_greedy_answer_from_another(base: LoadedBase) -> None:
    asked = _chat(base, "What?", "x")
    start = asked.spans[0].start
    greedy = _greedy(base.model, base, asked, 3)
    likely = TokenizedChat([*asked.tokens[:start], *greedy], [Span([], start, start + 3)])
    other = TokenizedChat([*asked.tokens[:start], *greedy[:2], 60], [Span([], start, start + 3)])

    scored_likely, scored_other = score(base.model, [likely, other], base.pad_token)

    assert scored_likely.is_exact and not scored_other.is_exact
    logits = base.model(input_ids=torch.tensor([likely.tokens])).logits[0, start - 1 : start + 2]
    expected = torch.log_softmax(logits, -1).gather(1, torch.tensor(greedy)[:, None])[:, 0]
    assert scored_likely.logprobs == pytest.approx(expected.tolist(), abs=1e-5)


def test_references_are_greedy_answers_of_the_adapter_and_differ_from_the_base(base: LoadedBase) -> None:
    model = _with_adapter(base)
    train = [_chat(base, f"Question {number}?", "Bluefin-7") for number in range(4)]
    held_out = [_chat(base, "Another?", "Bluefin-7")]

    evaluation = evaluate(model, base, train, held_out, "float32")

    assert evaluation.base is not None and evaluation.tuned is not None
    assert evaluation.base.loss != evaluation.tuned.loss
    assert evaluation.references
    for reference in evaluation.references:
        chat = _chat(base, reference.messages[0]["content"], "x")
        answer = _greedy(model, base, chat, reference.max_tokens)
        assert base.tokenizer.decode(answer, skip_special_tokens=True) == reference.text
        assert len(reference.logprobs) == reference.max_tokens
        assert reference.largest_difference > 0.1


def test_without_held_out_examples_there_is_no_score_but_a_reference(base: LoadedBase) -> None:
    evaluation = evaluate(_with_adapter(base), base, [_chat(base, "Q?", "A.")], [], "float32")

    assert evaluation.base is None and evaluation.tuned is None
    assert len(evaluation.references) == 1


def test_a_model_that_shapes_its_logits_is_refused(base: LoadedBase) -> None:
    base.model.config.final_logit_softcapping = 30.0

    with pytest.raises(UnsupportedModel, match="final_logit_softcapping"):
        check_model(base.model)
