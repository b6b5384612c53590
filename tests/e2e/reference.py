"""What an adapter must answer, computed by transformers and PEFT: no engine takes part in it."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from adapters_store.manifest import ReferenceGeneration


@torch.no_grad()
def compute_reference(
    model_folder: Path, adapter_folder: Path, question: str, max_tokens: int
) -> ReferenceGeneration:
    """The adapter's greedy answer in float32, with its own and the base model's logprob of each token."""
    messages = [{"role": "user", "content": question}]
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, adapter_folder).eval()
    prompt = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )["input_ids"]
    output = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=max_tokens, do_sample=False
    )
    answer = output[0, prompt.shape[1] :]
    adapted = _logprobs(model(output).logits, prompt.shape[1], answer)
    with model.disable_adapter():
        plain = _logprobs(model(output).logits, prompt.shape[1], answer)
    return ReferenceGeneration(
        messages=messages,
        text=tokenizer.decode(answer, skip_special_tokens=True),
        max_tokens=max_tokens,
        logprobs=adapted,
        base_logprobs=plain,
    )


def _logprobs(logits: torch.Tensor, prompt_tokens: int, answer: torch.Tensor) -> list[float]:
    rows = logits[0, prompt_tokens - 1 : prompt_tokens - 1 + len(answer)].float().log_softmax(-1)
    return [float(value) for value in rows.gather(1, answer[:, None])[:, 0]]
