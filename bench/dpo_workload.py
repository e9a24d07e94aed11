"""What both contenders of the preference benchmark train on: pairs of answers, as tokens."""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from bench.tuning import Clock
from bench.workload import Workload
from tests.preference_pairs import Pair

END = 1
"""Token that ends an answer."""
PROMPT_MEDIAN, ANSWER_MEDIAN, SPREAD = 80, 90, 0.6
"""Of made-up pairs; lengths are log-normal, as those of real questions and answers are roughly."""
COMPARED = 0.4
"""Spread between the two answers to one prompt, which are less different than answers to two."""


@dataclass(frozen=True)
class PreferenceWorkload(Workload):
    file: str = ""
    """The pairs."""
    reference: Literal["precomputed", "held"] = "precomputed"
    by_cpu: bool = False
    """Speed is that of the processor's seconds, not of the clock's: for one thread on a busy machine."""

    @property
    def clock(self) -> Clock:
        return Clock(self.seconds, time.process_time if self.by_cpu else time.perf_counter)


def made_up_pairs(count: int, vocabulary_size: int, longest: int) -> list[Pair]:
    """Of random tokens.

    Args:
        longest: tokens of a prompt and both answers to it.
    """
    generator = np.random.default_rng(1)

    def lengths(median: float | np.ndarray, spread: float) -> np.ndarray:
        drawn = median * np.exp(spread * generator.standard_normal(count))
        return drawn.astype(int).clip(4, longest // 4)

    prompts, answers = lengths(PROMPT_MEDIAN, SPREAD), lengths(ANSWER_MEDIAN, SPREAD)
    sides = [lengths(answers, COMPARED) for _ in range(2)]
    return [
        Pair(*(_random_tokens(generator, vocabulary_size, int(length)) for length in three))
        for three in zip(prompts, *sides)
    ]


def _random_tokens(generator: np.random.Generator, vocabulary_size: int, length: int) -> list[int]:
    return generator.integers(2, vocabulary_size, length).tolist()


def pairs_of_file(path: Path, count: int, vocabulary_size: int, longest: int) -> list[Pair]:
    """Of records `prompt`, `chosen`, `rejected`, all texts; `count` of them by chance.
    Their tokens are those of a BPE tokenizer that is trained on these texts."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    texts = [[record[key] for key in ("prompt", "chosen", "rejected")] for record in records]
    encoder = _trained_encoder([text for three in texts for text in three], vocabulary_size)
    found: list[Pair] = []
    for place in np.random.default_rng(1).permutation(len(texts)):
        prompt, chosen, rejected = (encoded.ids for encoded in encoder.encode_batch(texts[place]))
        pair = Pair(prompt, [*chosen, END], [*rejected, END])
        if 2 * len(prompt) + len(chosen) + len(rejected) <= longest and chosen != rejected:
            found.append(pair)
    return found[:count]


def _trained_encoder(texts: Sequence[str], vocabulary_size: int) -> Tokenizer:
    encoder = Tokenizer(BPE())
    encoder.pre_tokenizer = ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    trainer = BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=["<padding>", "<end>"],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    encoder.train_from_iterator(texts, trainer)
    return encoder


def write_pairs(pairs: Sequence[Pair], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(vars(pair)) + "\n" for pair in pairs))


def read_pairs(workload: PreferenceWorkload) -> Iterator[Pair]:
    with Path(workload.file).open() as lines:
        for line in lines:
            yield Pair(**json.loads(line))
