"""Where every rank begins: the run folder says what to do."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

from llmscale.config.load import read_resolved
from llmscale.config.problems import InputError
from llmscale.config.schema import Config
from llmscale.control.exit_codes import EXIT_BAD_INPUT
from llmscale.parallel.environment import RankEnvironment
from llmscale.run.elastic import with_nodes

Task = Callable[[Config, RankEnvironment], int]

TASKS = {
    "pretrain": "llmscale.run.pretrain:run",
    "sft": "llmscale.run.sft:run",
    "classify": "llmscale.run.classify:run",
    "reward": "llmscale.run.reward:run",
    "dpo": "llmscale.run.dpo:run",
    "rlhf": "llmscale.run.rlhf:run",
}
"""Task name -> function that runs it on one rank and returns the exit code."""


def main(run_folder: Path) -> int:
    """Run the task of `run_folder/config.yaml` on this rank; returns its exit code, 2 for bad input."""
    environment = RankEnvironment.from_variables()
    # With elasticity there may be fewer nodes than the config asks for.
    config = with_nodes(read_resolved(run_folder / "config.yaml"), environment.nodes)
    try:
        return load_task(config.task)(config, environment)
    except InputError as error:
        # A restart would find the same: a verdict, not a crash.
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return EXIT_BAD_INPUT


def task_module(task: str) -> str:
    """Module that the rank server imports ahead of time."""
    return TASKS[task].partition(":")[0]


def load_task(task: str) -> Task:
    module, _, function = TASKS[task].partition(":")
    return getattr(importlib.import_module(module), function)
