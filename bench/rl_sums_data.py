"""Sums with a carry, and a start that has a habit: it mostly forgets the carry.

27+35 is 62; who forgets the carry says 52. Of the answers that the start is fine-tuned on, a quarter are
right. Greedily it is wrong nearly always, by chance now and then right: what reinforcement learning has to
find and to strengthen. No constant is the answer to many of these sums.
"""

import json
import random
from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

from llmscale.data.files import replace_file
from llmscale.data.train_tokenizer import train_tokenizer

DIGITS = [str(digit) for digit in range(10)]
HELD_OUT, ANSWERS_A_SUM = 256, 8
RIGHT_SHARE = 0.25
VOCABULARY = 380

Sum = tuple[int, int]


def make(folder: Path, seed: int = 0) -> None:
    """Tokenizer, answers to fine-tune on, and prompts to train on and to hold out; what is there stays."""
    if not (folder / "tokenizer").exists():
        # Digits stand alone in it, so that no token is made of two of them.
        text = f"User: {' '.join([*DIGITS, '+'])}\n\nAssistant:"
        train_tokenizer([text] * 200, folder / "tokenizer", VOCABULARY, "bpe", threads=1)
    if (folder / "held_out.jsonl").exists():
        return
    draws = random.Random(seed)
    sums = [one for one in product(range(10, 100), range(10, 100)) if carries(*one)]
    draws.shuffle(sums)
    held_out, trained = sums[:HELD_OUT], sums[HELD_OUT:]
    write(folder / "answers.jsonl", (answered(one, draws) for _ in range(ANSWERS_A_SUM) for one in trained))
    write(folder / "train.jsonl", map(asked, trained))
    write(folder / "held_out.jsonl", map(asked, held_out))


def carries(first: int, second: int) -> bool:
    return first % 10 + second % 10 >= 10


def asked(one: Sum) -> dict[str, str]:
    first, second = one
    return {"prompt": f"{first}+{second}", "answer": str(first + second)}


def answered(one: Sum, draws: random.Random) -> dict[str, Any]:
    right = sum(one)
    said = right if draws.random() < RIGHT_SHARE else right - 10
    user, assistant = (
        {"role": "user", "content": asked(one)["prompt"]},
        {"role": "assistant", "content": str(said)},
    )
    return {"messages": [user, assistant]}


def write(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    with replace_file(path) as file:
        file.writelines(f"{json.dumps(record)}\n".encode() for record in records)
