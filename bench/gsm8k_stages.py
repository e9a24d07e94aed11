"""What the comparisons on school maths share: a model of the demo's size that has read Python's standard
library, and fine-tunings of it on the problems. All of it runs through the command line in folders under
bench/results/gsm8k: what is there is not made again, what was stopped goes on."""

import hashlib
import json
from pathlib import Path
from typing import Any

from llmscale.data.files import replace_file
from llmscale.run.demo_stage import llmscale
from llmscale.runtime.events import read_events

RUNS = Path("bench/results/gsm8k")
DATA = RUNS / "data"

LAYOUT = (
    "parallel.tensor=1",
    "parallel.pipeline=1",
    "zero.stage=1",
    "cluster.processes_per_node=2",
    "cluster.threads=1",
)
"""Two replicas: on few cores quicker than what the configs show."""
SEQUENCE_LENGTH = 512
PRETRAINING_STEPS, PRETRAINING_ROWS = 280, 8
VALIDATION_BATCHES = 28
"""All held-out problems, and most of the held-out text of the corpus."""
HELD_OUT = 8
"""Of 256 problems."""


def split(records: Path, field: str, held_out: int, folder: Path) -> dict[str, int]:
    """Write `train.jsonl` and `validation.jsonl`; returns their counts. The hash of a field tells where a
    record goes: those that share it stay together.

    Args:
        held_out: how many of 256.
    """
    lines: dict[str, list[bytes]] = {"train": [], "validation": []}
    for line in records.read_bytes().splitlines(keepends=True):
        digest = hashlib.sha256(json.loads(line)[field].encode()).digest()
        lines["validation" if digest[0] < held_out else "train"].append(line)
    for name, found in lines.items():
        with replace_file(folder / f"{name}.jsonl") as file:
            file.writelines(found)
    return {name: len(found) for name, found in lines.items()}


def pretrain() -> Path:
    """A model of the demo's size that has read the demo's corpus."""
    return once(
        "pretrained",
        "configs/pretrain/tiny.yaml",
        *sizes(PRETRAINING_ROWS),
        "optimizer.lr=2e-3",
        f"train.steps={PRETRAINING_STEPS}",
        f"optimizer.warmup_steps={PRETRAINING_STEPS // 10}",
        f"train.validate_every={PRETRAINING_STEPS // 2}",
        f"checkpoint.every={PRETRAINING_STEPS // 4}",
    )


def fine_tune(name: str, pretrained: Path, question: str, steps: int, rows: int, *overrides: str) -> Path:
    """That model after as many steps on the problems.

    Args:
        question: that it is asked at each validation.
    """
    entry = "{{path: {}, fields: {{instruction: question, output: answer}}}}"
    asked: dict[str, Any] = {"prompts": [question], "max_new_tokens": 100}
    return once(
        name,
        "configs/sft/tiny.yaml",
        *sizes(rows),
        f"train.init_from={pretrained}",
        f"data.train=[{entry.format(DATA / 'train.jsonl')}]",
        f"data.validation=[{entry.format(DATA / 'validation.jsonl')}]",
        f"train.steps={steps}",
        f"optimizer.warmup_steps={steps // 10}",
        f"train.validate_every={steps // 2}",
        f"train.generate={json.dumps(asked)}",
        f"checkpoint.every={steps // 2}",
        "checkpoint.keep_best=false",
        *overrides,
    )


def shortest_question() -> str:
    records = [json.loads(line) for line in (DATA / "validation.jsonl").open()]
    return min((record["question"] for record in records), key=len)


def sizes(rows: int) -> list[str]:
    """Of a step of so many rows, half of them on each replica."""
    return [
        f"train.sequence_length={SEQUENCE_LENGTH}",
        f"train.global_batch_size={rows}",
        f"train.micro_batch_size={rows // 2}",
        f"train.validation_batches={VALIDATION_BATCHES}",
    ]


def once(name: str, config: str, *overrides: str) -> Path:
    """The run of this name, trained to its end unless it is there."""
    run = RUNS / name
    if not any(event.kind == "finished" for event in read_events(run)):
        places = (f"run.root={RUNS}", f"run.name={name}", "logging.wandb=off")
        llmscale("train", config, *places, *LAYOUT, *overrides)
    return run
