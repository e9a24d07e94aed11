"""What both contenders of the GRPO benchmark begin from: a model, a tokenizer, prompts, a reward."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.transformers_loop import build
from bench.workload import Workload
from tests.peers_trl import END, as_text, numbers_tokenizer

SHORTEST, LONGEST = 8, 40
"""Tokens of a prompt."""
PROMPTS = 512
TEMPLATE = """\
{%- for message in messages -%}
{%- if message.role == "assistant" -%}
{%- generation -%}{{ message.content ~ " END" }}{%- endgeneration -%}
{%- else -%}
{{- message.content -}}
{%- endif -%}
{%- endfor -%}
""".replace("END", END)
"""Nothing but what is said."""


@dataclass(frozen=True)
class GrpoWorkload(Workload):
    """`sequences` are the answers of a step, `micro_batch_size` those that are learned from at once."""

    folder: str = ""
    answers: int = 8
    """To each prompt."""
    tokens: int = 64
    """Of an answer."""
    workers: int = 1
    """Processes of llmscale, among which the threads are shared out."""
    warm_up_steps: int = 2
    steps: int = 6
    """That are measured."""
    beta: float = 0.0
    """Weight of the divergence from a reference, k3 in the loss."""

    @property
    def prompts_a_step(self) -> int:
        return self.sequences // self.answers

    @property
    def place(self) -> Path:
        return Path(self.folder)


def prepare(workload: GrpoWorkload) -> None:
    """The same random weights and prompts for everyone, in the workload's folder."""
    place = workload.place
    build(workload).save_pretrained(place / "model")
    tokenizer = numbers_tokenizer(workload.vocabulary_size)
    for folder in ("model", "tokenizer"):
        tokenizer.save_pretrained(place / folder)
    (place / "template.jinja").write_text(TEMPLATE)
    generator = np.random.default_rng(1)
    prompts = [
        generator.integers(2, workload.vocabulary_size, length).tolist()
        for length in generator.integers(SHORTEST, LONGEST + 1, PROMPTS)
    ]
    lines = (json.dumps({"prompt": as_text(prompt)}) + "\n" for prompt in prompts)
    (place / "prompts.jsonl").write_text("".join(lines))


def evenness(prompts: Sequence[str], completions: Sequence[str], **_: object) -> list[float]:
    """A reward: the share of even numbers in an answer."""
    digits = [[word[-1] for word in completion.split() if word.isdecimal()] for completion in completions]
    return [sum(digit in "02468" for digit in one) / max(len(one), 1) for one in digits]


@dataclass(frozen=True)
class Measured:
    """Of each step."""

    seconds: Sequence[float]
    processor_seconds: float
    """Of a step in the mean, of all processes that took part."""
    rollouts: Sequence[float]
    """Seconds of it that its answers took to be written."""
    tokens: Sequence[float]
    """Of its answers."""

    def print(self) -> None:
        """The line that a contender prints last."""
        found = {
            "step_seconds": statistics.median(self.seconds),
            "processor_seconds": self.processor_seconds,
            "rollout_tokens_per_second": sum(self.tokens) / sum(self.rollouts),
            "tokens_per_second": sum(self.tokens) / sum(self.seconds),
            "answer_tokens": statistics.mean(self.tokens),
            "steps": list(self.seconds),
            "rollouts": list(self.rollouts),
        }
        print(json.dumps(found), flush=True)
