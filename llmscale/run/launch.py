"""From a checked config to this node's agent."""

import signal
import time
from pathlib import Path

from rich.console import Console

from llmscale.config.schema import Config
from llmscale.control.coordinator import Policy
from llmscale.parallel.environment import NodeEnvironment
from llmscale.run.committed import committed_step
from llmscale.run.elastic import usable_nodes
from llmscale.run.entry import main
from llmscale.runtime.agent import Agent, Job
from llmscale.runtime.coordination import Coordination, run_alone
from llmscale.runtime.link import LinkServer, read_token
from llmscale.runtime.progress import Progress
from llmscale.runtime.rendezvous import listening_address
from llmscale.runtime.stop_signal import SIGNALS
from llmscale.runtime.watcher import Watcher


class Printer(Watcher):
    """For agents of nodes beside the first: their few words go to the job's log."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def run_agent(config: Config, folder: Path, environment: NodeEnvironment | None = None) -> int:
    """Train on this node until it is over; returns the exit code.

    Args:
        environment: this node's place among several; None: there is one.
    """
    job = Job(
        run_folder=folder,
        entry=main,
        arguments=(folder,),
        policy=policy_of(config),
        committed_step=lambda: committed_step(folder),
        interface=config.cluster.interface,
    )
    console = Console(stderr=True)
    if environment is not None and not environment.has_coordinator:
        return Agent(job, Printer(console), environment).run_job()
    with Progress(config, folder, console) as progress:
        return Agent(job, progress, environment).run_job()


def run_coordinator(config: Config, folder: Path, host: str, port: int, written_to: Path) -> int:
    """Run only the coordinator, for agents that are told where it is; returns the exit code.

    Args:
        host: name or address under which agents reach this machine.
        port: where to listen; 0: any.
        written_to: gets `host:port` once it listens.
    """
    signals: list[str] = []
    for number in (*SIGNALS, signal.SIGINT):
        signal.signal(number, lambda number, _frame: signals.append(signal.Signals(number).name))
    address = listening_address(host, config.cluster.interface)
    server = LinkServer(address, (port,), read_token(folder))
    temporary = written_to.with_name(f".{written_to.name}.{time.monotonic_ns()}")
    temporary.write_text(f"{address}:{server.port}\n")
    temporary.replace(written_to)
    with Progress(config, folder, Console(stderr=True)) as progress:
        coordination = Coordination(
            folder, policy_of(config), lambda: committed_step(folder), progress, server
        )
        try:
            return run_alone(coordination, signals)
        finally:
            coordination.close()


def policy_of(config: Config) -> Policy:
    """What the coordinator may do with this run."""
    cluster = config.cluster
    # Of reinforcement learning the agent has the driver only; the others are workers on a Ray.
    drives = config.task == "rlhf"
    return Policy(
        nodes=1 if drives else cluster.nodes,
        usable=frozenset((1,)) if drives else usable_nodes(config),
        processes=1 if drives else cluster.processes_per_node,
        max_restarts=cluster.max_restarts,
        watchdog=cluster.watchdog,
        stages=config.parallel.pipeline,
        join_seconds=cluster.join_seconds,
        lost_seconds=cluster.node_lost_seconds,
    )
