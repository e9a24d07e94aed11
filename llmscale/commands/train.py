"""`llmscale train`: check everything, then hand over to this node's agent."""

from pathlib import Path
from typing import Annotated

import typer

from llmscale.config.load import load_config
from llmscale.config.problems import InputError, Problem
from llmscale.config.schema import Config
from llmscale.run.admission import check_run
from llmscale.run.entry import task_module
from llmscale.runtime import stop_signal
from llmscale.runtime.rank_variables import prepare_environment
from llmscale.runtime.ranks import start_server
from llmscale.runtime.run_folder import locked, write_config


def train(
    config: Annotated[Path, typer.Argument(help="Config file (YAML).", show_default=False)],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes, such as train.steps=100.")
    ] = None,
) -> None:
    """Train here, in the foreground; resumes if the run folder has a checkpoint.

    Exit codes: 0 done, 1 failed, 2 bad input, 3 no progress, 75 saved and wants to be started again.
    """
    # A scheduler's signal may come while torch is being imported.
    stop_signal.install()
    raise typer.Exit(run_training(load_config(config, overrides or [])))


def run_training(config: Config) -> int:
    """Check data and run folder, and run the agent; returns the exit code.

    Raises:
        InputError: with every problem, before any rank starts.
    """
    folder = config.run_folder
    problems = check_run(config)
    if config.sweep:
        message = "is several runs, and `train` is one: `llmscale submit` starts them all"
        problems.append(Problem("sweep", ", ".join(config.sweep), message))
    if problems:
        raise InputError(problems)
    with locked(folder):
        write_config(config, folder)
        prepare_environment(config.cluster.processes_per_node, config.cluster.threads)
        # The server imports torch and all else that ranks need while this process imports torch too.
        start_server([task_module(config.task)], folder / "logs" / "server.log")
        from llmscale.run.launch import run_agent  # noqa: PLC0415 -- the checks above must not wait for torch

        return run_agent(config, folder)
