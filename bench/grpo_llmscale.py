"""Contender: a whole run of `task: rlhf` on a Ray of its own, its driver and the workers that are the
actor."""

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil

from bench.grpo_workload import GrpoWorkload, Measured
from bench.rounds import rank_variables
from bench.workload import BETAS, CLIP, EPSILON, LEARNING_RATE, WEIGHT_DECAY
from llmscale.runtime.metrics import read_metrics

NAME = "grpo"
POLL_SECONDS = 0.05
POSITIONS = 1024
"""That the model has, however long the rows are that it learns from."""


def main() -> None:
    workload = GrpoWorkload.from_command_line()
    with tempfile.TemporaryDirectory() as folder:
        processor = train(workload, Path(folder))
        lines = read_metrics(Path(folder) / NAME)[workload.warm_up_steps :]
    Measured(
        [line["step_seconds"] for line in lines],
        processor / workload.steps,
        [line["seconds_rollout"] for line in lines],
        [line["answer_tokens"] * workload.sequences for line in lines],
    ).print()


def train(workload: GrpoWorkload, runs: Path) -> float:
    """Processor seconds of the steps after the first ones, of all processes of the run.

    Raises:
        CalledProcessError: the run has failed.
    """
    variables = {name: value for name, value in os.environ.items() if name not in rank_variables(0, 1, 0, 1)}
    command = [sys.executable, "-m", "llmscale", "train", str(write_config(workload, runs))]
    with subprocess.Popen(command, env=variables) as process:
        marks: dict[int, float] = {}
        while process.poll() is None:
            step = len(read_metrics(runs / NAME))
            if step not in marks:
                marks[step] = processor_seconds(process.pid)
            time.sleep(POLL_SECONDS)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return marks[workload.warm_up_steps + workload.steps] - marks[workload.warm_up_steps]


def processor_seconds(pid: int) -> float:
    """Of a process and of all that came of it and are there."""
    found = 0.0
    process = psutil.Process(pid)
    for one in (process, *process.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            times = one.cpu_times()
            found += times.user + times.system
    return found


def write_config(workload: GrpoWorkload, runs: Path) -> Path:
    """JSON is YAML."""
    place, file = workload.place, runs / f"{NAME}.yaml"
    config = {
        "task": "rlhf",
        "run": {"name": NAME, "root": str(runs)},
        "model": workload.model.model_dump(mode="json") | {"max_positions": POSITIONS},
        "tokenizer": {"path": str(place / "tokenizer")},
        "data": {"train": [str(place / "prompts.jsonl")]},
        "train": {
            "init_from": str(place / "model"),
            "steps": workload.warm_up_steps + workload.steps,
            "micro_batch_size": workload.micro_batch_size,
            "sequence_length": workload.sequence_length,
            "precision": workload.precision,
        },
        "rlhf": {
            "algorithm": "grpo",
            "chat_template": str(place / "template.jinja"),
            "rewards": [{"kind": "function", "function": "bench.grpo_workload:evenness"}],
            "rollout": {
                "prompts": workload.prompts_a_step,
                "answers": workload.answers,
                "max_new_tokens": workload.tokens,
                "batch": workload.sequences,
            },
            "kl": {"coefficient": workload.beta, "penalty": "loss", "estimator": "k3"}
            if workload.beta
            else 0,
        },
        "optimizer": {
            "lr": LEARNING_RATE,
            "betas": BETAS,
            "epsilon": EPSILON,
            "weight_decay": WEIGHT_DECAY,
            "clip": CLIP,
            "schedule": "constant",
        },
        "cluster": {"processes_per_node": workload.workers, "threads": workload.threads // workload.workers},
        "logging": {"wandb": "off"},
    }
    file.write_text(json.dumps(config))
    return file


if __name__ == "__main__":
    main()
