"""The plan as tables for a terminal."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from llmscale.config.schema import Config
from llmscale.plan.devices import Device
from llmscale.plan.memory import RankMemory, fullest_rank
from llmscale.plan.speed import Amounts, amounts, step_seconds


def plan_report(config: Config, vocabulary_size: int, device: Device, utilisation: float) -> Group:
    """World, memory of the fullest rank, and the run, one table each."""
    wanted = amounts(config, vocabulary_size)
    stage, memory = fullest_rank(config, vocabulary_size)
    return Group(
        _world_table(config, wanted),
        _memory_table(config, stage, memory, device),
        _run_table(config, wanted, device, utilisation),
    )


def _world_table(config: Config, wanted: Amounts) -> Table:
    parallel, train, cluster = config.parallel, config.train, config.cluster
    table = titled_table("World")
    product = f"{parallel.tensor} × {parallel.pipeline} × {config.data_parallel}"
    table.add_row("tensor × pipeline × data", f"{product} = {config.world_size} ranks")
    table.add_row("nodes × processes", f"{cluster.nodes} × {cluster.processes_per_node}")
    batch = f"{train.micro_batch_size} × {wanted.microbatches} × {config.data_parallel}"
    table.add_row("micro batch × microbatches × data", f"{batch} = {train.global_batch_size} sequences")
    if parallel.pipeline > 1:
        table.add_row("pipeline bubble", f"{wanted.bubble:.1%} of a step")
    return table


def _memory_table(config: Config, stage: int, memory: RankMemory, device: Device) -> Table:
    where = f", pipeline stage {stage}" if config.parallel.pipeline > 1 else ""
    table = titled_table(
        f"Memory of the fullest rank{where} (ZeRO-{config.zero.stage}, {config.train.precision})"
    )
    for kind, size in memory.kinds.items():
        table.add_row(kind, bytes_text(size))
    fits = memory.total <= device.memory
    total = Text(
        f"{bytes_text(memory.total)} of {bytes_text(device.memory)} usable", style="green" if fits else "red"
    )
    table.add_row(Text(f"total on {device.name}", style="bold"), total)
    if memory.host:
        table.add_row("offloaded to main memory, a rank", bytes_text(memory.host))
    return table


def _run_table(config: Config, wanted: Amounts, device: Device, utilisation: float) -> Table:
    table, epochs = titled_table("Run"), config.train.epochs
    table.add_row("parameters", f"{wanted.parameters:,}")
    if config.outputs == 0:
        table.add_row("labels", "those of the data, whose head is not counted")
    table.add_row("tokens a step", f"{wanted.tokens_per_step:,}")
    table.add_row("operations a token", f"{wanted.flops_per_token:.3g}")
    if epochs is None:
        a_parameter = wanted.tokens / wanted.parameters
        table.add_row("steps", f"{config.train.steps:,}")
        table.add_row("tokens in all", f"{wanted.tokens:,} ({a_parameter:.1f} a parameter)")
        table.add_row("operations in all", f"{wanted.flops_per_token * wanted.tokens:.3g}")
    else:
        table.add_row("epochs", f"{epochs:g}, whose steps the data tells")
    if device.peak_flops is not None:
        seconds = step_seconds(config, wanted, device.peak_flops, utilisation)
        assumption = (
            f"if {utilisation:.0%} of {device.name}'s {device.peak_flops / 1e12:g} TFLOP/s is reached"
        )
        table.add_row("seconds a step", f"{seconds:.3g} {assumption}")
        table.add_row("tokens a second", f"{wanted.tokens_per_step / seconds:,.0f}")
        if epochs is None:
            table.add_row("time in all", duration_text(seconds * config.train.steps))
            table.add_row("device hours", f"{seconds * config.train.steps * config.world_size / 3600:,.1f}")
    table.add_row("a checkpoint", bytes_text(wanted.checkpoint_bytes))
    return table


def suggestions(overrides: list[list[str]]) -> RenderableType:
    if not overrides:
        return Text("No smaller micro batch, other layout or larger number of nodes tried here fits either.")
    return Group(Text("What would fit:"), *(Text("  " + " ".join(changes)) for changes in overrides))


def bytes_text(size: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def duration_text(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def titled_table(title: str) -> Table:
    table = Table(title=title, title_justify="left", show_header=False, title_style="bold", min_width=60)
    table.add_column(overflow="fold")
    table.add_column(justify="right", overflow="fold")
    return table
