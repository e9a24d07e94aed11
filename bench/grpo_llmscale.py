"""Contender: a whole run of `task: rlhf` on a Ray of its own, its driver and one worker that is the actor."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.grpo_workload import GrpoWorkload, told
from bench.rounds import rank_variables
from bench.workload import BETAS, CLIP, EPSILON, LEARNING_RATE, WEIGHT_DECAY
from llmscale.runtime.metrics import read_metrics

POSITIONS = 1024
"""That the model has, however long the rows are that it learns from."""


def main() -> None:
    workload = GrpoWorkload.from_command_line()
    with tempfile.TemporaryDirectory() as folder:
        train(workload, Path(folder))
        lines = read_metrics(Path(folder) / "grpo")[workload.warm_up_steps :]
    steps = [line["step_seconds"] for line in lines]
    rollouts = [line["seconds_rollout"] for line in lines]
    print(told(steps, rollouts, [line["tokens"] for line in lines]), flush=True)


def train(workload: GrpoWorkload, runs: Path) -> None:
    """
    Raises:
        CalledProcessError: the run has failed.
    """
    variables = {name: value for name, value in os.environ.items() if name not in rank_variables(0, 1, 0, 1)}
    command = [sys.executable, "-m", "llmscale", "train", str(write_config(workload, runs))]
    subprocess.run(command, check=True, env=variables)


def write_config(workload: GrpoWorkload, runs: Path) -> Path:
    """JSON is YAML."""
    place, file = workload.place, runs / "grpo.yaml"
    config = {
        "task": "rlhf",
        "run": {"name": "grpo", "root": str(runs)},
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
        "cluster": {"processes_per_node": 1, "threads": workload.threads},
        "logging": {"wandb": "off"},
    }
    file.write_text(json.dumps(config))
    return file


if __name__ == "__main__":
    main()
