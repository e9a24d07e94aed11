"""`llmscale submit`: check and plan, freeze the run folder, hand over to local, SLURM or Ray."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from llmscale_launcher.backends.base import JobRequest, SubmitError
from llmscale_launcher.backends.table import backend
from llmscale_launcher.job import JobRecord
from llmscale_launcher.pipeline import plan_pipeline, write_pipeline
from llmscale_launcher.planned import PlannedJob
from llmscale_launcher.sweep import plan_sweep, write_sweep
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llmscale.config.load import load_config, load_variants
from llmscale.config.pipeline import is_pipeline, load_pipeline
from llmscale.config.schema import Config
from llmscale.data.checks import resolved_vocabulary_size
from llmscale.plan.memory import fullest_rank
from llmscale.plan.report import bytes_text
from llmscale.plan.rlhf import pool_memories
from llmscale.plan.speed import amounts
from llmscale.rlhf.workers.placement import pool_asks
from llmscale.run.submission import check_jobs, requests, submit_jobs


def submit(
    config: Annotated[Path, typer.Argument(help="Config or pipeline file (YAML).", show_default=False)],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes, such as cluster.nodes=4.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check all, print the plan and the script, write nothing.")
    ] = False,
) -> None:
    """Hand a run, a sweep or a pipeline to cluster.kind, and return at once.

    A run that was stopped goes on where it was.

    Exit codes: 0 submitted, 1 the scheduler refused, 2 bad input.
    """
    order = _read_order(config, overrides or [])
    check_jobs(order.jobs)
    console = Console()
    if dry_run:
        _print_plan(order.jobs, console)
        return
    try:
        records = submit_jobs(order.jobs)
    except SubmitError as error:
        Console(stderr=True).print(Text(f"not submitted: {error}", style="bold red"))
        raise typer.Exit(1) from None
    order.write_record(records)
    _print_submitted(order.name, records, console)


@dataclass(frozen=True)
class _Order:
    """What is asked for: a run, a sweep or a pipeline."""

    name: str
    """What `status` and `cancel` know it by."""
    jobs: Sequence[PlannedJob]
    write_record: Callable[[dict[Path, JobRecord]], object]
    """Notes which jobs belong together."""


def _read_order(path: Path, overrides: Sequence[str]) -> _Order:
    if is_pipeline(path):
        pipeline = load_pipeline(path, overrides)
        return _Order(pipeline.name, plan_pipeline(pipeline), partial(write_pipeline, pipeline))
    loaded = load_config(path, overrides)
    name = loaded.run_folder.name
    if not loaded.sweep:
        return _Order(name, [PlannedJob(loaded)], lambda _: None)
    variants = load_variants(path, overrides)
    jobs = plan_sweep(loaded, variants, backend(loaded.cluster.kind).has_arrays)
    return _Order(name, jobs, partial(write_sweep, loaded, variants))


def _print_plan(jobs: Sequence[PlannedJob], console: Console) -> None:
    for request in requests(jobs):
        console.print(Text(request.folder.name, style="bold"), Text(_summary(request)), soft_wrap=True)
        script = backend(request.config.cluster.kind).script(request)
        console.print(script, markup=False, highlight=False, soft_wrap=True)


def _summary(request: JobRequest) -> str:
    """The plan in a line; `llmscale plan` has the whole of it."""
    config = request.config
    if config.task == "rlhf":
        return " · ".join([*_summary_of_pools(config), *_order_of(request)])
    cluster, parallel = config.cluster, config.parallel
    wanted, epochs = amounts(config, resolved_vocabulary_size(config)), config.train.epochs
    length = f"{config.train.steps:,} steps" if epochs is None else f"{epochs:g} epochs, steps"
    _, memory = fullest_rank(config, resolved_vocabulary_size(config))
    parts = [
        f"{cluster.kind}: {cluster.nodes:,} × {cluster.processes_per_node} = {config.world_size:,} ranks",
        f"tensor {parallel.tensor} × pipeline {parallel.pipeline} × data {config.data_parallel:,}",
        f"{wanted.parameters:,} parameters, {bytes_text(memory.total)} a rank",
        f"{length} of {wanted.tokens_per_step:,} tokens",
    ]
    return " · ".join([*parts, *_order_of(request)])


def _summary_of_pools(config: Config) -> Iterator[str]:
    vocabulary_size, rollout = resolved_vocabulary_size(config), config.rlhf.rollout
    memories = {memory.name: memory.total for memory in pool_memories(config, vocabulary_size)}
    yield f"{config.cluster.kind}: {len(memories)} pool{'' if len(memories) == 1 else 's'} and a driver"
    for ask in pool_asks(config):
        yield f"{ask}, {bytes_text(memories[ask.name])} a process"
    yield f"{config.train.steps:,} steps of {rollout.prompts} × {rollout.answers} answers"


def _order_of(request: JobRequest) -> Iterator[str]:
    """Which other runs there are."""
    if request.tasks:
        yield f"an array of {len(request.tasks):,} runs"
    if request.after:
        yield f"after {', '.join(earlier.folder.name for earlier in request.after)}"


def _print_submitted(name: str, records: dict[Path, JobRecord], console: Console) -> None:
    table = Table("run", "job", "folder", box=None, pad_edge=False)
    for folder, record in records.items():
        table.add_row(folder.name, record.key, str(folder))
    console.print(table)
    first = next(iter(records)).name
    console.print(f"llmscale status {name} · llmscale logs {first} -f · llmscale cancel {name}")
