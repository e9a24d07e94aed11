"""By how much a model puts the right answer of a pair above the wrong one, as transformers computes it.

Shapes: T tokens of a text.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer


@dataclass(frozen=True)
class Pair:
    prompt: str
    chosen: str
    rejected: str


def read_pairs(path: Path) -> list[Pair]:
    return [Pair(**json.loads(line)) for line in path.open()]


def asked_otherwise(pairs: Sequence[Pair]) -> list[Pair]:
    """The same answers to the prompt of the next problem."""
    prompts = list({pair.prompt: None for pair in pairs})
    following = dict(zip(prompts, [*prompts[1:], *prompts[:1]]))
    return [replace(pair, prompt=following[pair.prompt]) for pair in pairs]


def ended_otherwise(pairs: Sequence[Pair]) -> list[Pair]:
    """The right answer against itself with the last line, its result, from the wrong one."""
    found = []
    for pair in pairs:
        *steps, _ = pair.chosen.split("\n")
        *_, result = pair.rejected.split("\n")
        found.append(replace(pair, rejected="\n".join((*steps, result))))
    return found


def accuracy(differences: Sequence[float]) -> float:
    """How often the right answer is above; half where both are alike."""
    return mean((difference > 0) + (difference == 0) / 2 for difference in differences)


def balanced_accuracy(differences: Sequence[float], pairs: Sequence[Pair]) -> tuple[float, float, float]:
    """Where the right answer is the longer one, where it is the shorter one, and the mean of both: 0.5 for
    whatever goes by length alone."""
    is_longer = [len(pair.chosen) > len(pair.rejected) for pair in pairs]
    longer, shorter = (
        accuracy([one for one, has in zip(differences, is_longer, strict=True) if has is wanted])
        for wanted in (True, False)
    )
    return longer, shorter, (longer + shorter) / 2


@torch.inference_mode()
def reward_differences(folder: Path, pairs: Sequence[Pair]) -> list[float]:
    """Of a reward model's scores."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def score(prompt: str, answer: str) -> float:
        return model(**_tokens(tokenizer, prompt, answer)).logits.item()

    return [score(pair.prompt, pair.chosen) - score(pair.prompt, pair.rejected) for pair in pairs]


@torch.inference_mode()
def log_probability_differences(folder: Path, pairs: Sequence[Pair]) -> tuple[list[float], list[float]]:
    """Of whole answers, and of their means a token."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def answer_log_probabilities(prompt: str, answer: str) -> torch.Tensor:
        found = _tokens(tokenizer, prompt, answer, return_offsets_mapping=True)
        ends_T = found.pop("offset_mapping")[0, :, 1]
        logits_TV = model(**found).logits[0, :-1]
        next_T = found["input_ids"][0, 1:]
        log_probability_T = logits_TV.log_softmax(-1).gather(-1, next_T[:, None])[:, 0]
        return log_probability_T[ends_T[1:] > len(_text(tokenizer, prompt))]

    chosen = [answer_log_probabilities(pair.prompt, pair.chosen) for pair in pairs]
    rejected = [answer_log_probabilities(pair.prompt, pair.rejected) for pair in pairs]
    whole = [(one.sum() - other.sum()).item() for one, other in zip(chosen, rejected)]
    return whole, [(one.mean() - other.mean()).item() for one, other in zip(chosen, rejected)]


def _tokens(tokenizer: Any, prompt: str, answer: str, **options: Any) -> Any:
    text = _text(tokenizer, prompt, answer)
    return tokenizer(text, return_tensors="pt", add_special_tokens=False, **options)


def _text(tokenizer: Any, prompt: str, answer: str | None = None) -> str:
    """As the model was trained on it; without an answer up to where one begins."""
    messages = [{"role": "user", "content": prompt}]
    if answer is not None:
        messages.append({"role": "assistant", "content": answer})
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer is None)
