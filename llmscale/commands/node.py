"""What is started once on every node of a job, whoever starts it: SLURM, Ray or a person."""

import os
from pathlib import Path

from llmscale.config.load import read_resolved
from llmscale.config.problems import InputError, Problem
from llmscale.parallel.environment import NodeEnvironment
from llmscale.run.attempt import as_only_attempt
from llmscale.run.entry import task_module
from llmscale.runtime import stop_signal
from llmscale.runtime.rank_variables import prepare_environment
from llmscale.runtime.ranks import start_server
from llmscale.runtime.run_folder import CONFIG_NAME


def run_node(folder: Path) -> int:
    """Run this node's agent, and on the first node the coordinator; returns the exit code."""
    # A scheduler's signal may come while torch is being imported.
    stop_signal.install()
    config = read_resolved(folder / CONFIG_NAME)
    environment = node_environment()

    def run() -> int:
        prepare_environment(config.cluster.processes_per_node, config.cluster.threads)
        # The server imports torch and all else that ranks need while this process imports torch too.
        start_server([task_module(config.task)], folder / "logs" / f"server-{environment.index}.log")
        quiet_torch()
        from llmscale.run.launch import run_agent  # noqa: PLC0415 -- the server must not wait for it

        return run_agent(config, folder, environment)

    return as_only_attempt(folder, run) if environment.has_coordinator else run()


def run_coordinator(folder: Path, host: str, port: int, written_to: Path) -> int:
    """Run the coordinator for agents that are started elsewhere; returns the exit code."""
    config = read_resolved(folder / CONFIG_NAME)

    def run() -> int:
        quiet_torch()
        from llmscale.run import launch  # noqa: PLC0415 -- torch takes its time

        return launch.run_coordinator(config, folder, host, port, written_to)

    return as_only_attempt(folder, run)


def run_preflight(folder: Path, seconds: float) -> int:
    """Look at this node, and on the first node at what all of them have found; returns the exit code."""
    config = read_resolved(folder / CONFIG_NAME)
    environment = node_environment()
    from llmscale.run.preflight import check_node  # noqa: PLC0415 -- torch takes its time

    return check_node(folder, config, environment, seconds)


def quiet_torch() -> None:
    """Before torch is imported: keep it from saying at every start that it cannot look up its peers' names.
    Ranks, which come from a server that runs already, say what they like."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def node_environment() -> NodeEnvironment:
    """This node's place, from the variables of whoever started it.

    Raises:
        InputError: they do not say where the first node is.
    """
    try:
        return NodeEnvironment.from_variables()
    except ValueError as error:
        raise InputError([Problem("LLMSCALE_RENDEZVOUS", None, str(error))]) from None
