"""From a checked config to this node's agent."""

from pathlib import Path

from rich.console import Console

from llmscale.config.schema import Config
from llmscale.run.committed import committed_step
from llmscale.run.entry import main
from llmscale.runtime.agent import Agent, Job
from llmscale.runtime.progress import Progress


def run_agent(config: Config, folder: Path) -> int:
    """Train on this node until it is over; returns the exit code."""
    job = Job(
        run_folder=folder,
        entry=main,
        arguments=(folder,),
        processes=config.cluster.processes_per_node,
        committed_step=lambda: committed_step(folder),
        nodes=config.cluster.nodes,
        max_restarts=config.cluster.max_restarts,
    )
    with Progress(config, folder, Console(stderr=True)) as progress:
        return Agent(job, progress).run_job()
