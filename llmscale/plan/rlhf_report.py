"""The plan of a run of reinforcement learning as tables for a terminal."""

from rich.console import Group
from rich.table import Table
from rich.text import Text

from llmscale.config.rlhf_roles import pools_of
from llmscale.config.schema import Config
from llmscale.plan.devices import Device
from llmscale.plan.parameters import model_parameters
from llmscale.plan.report import bytes_text, titled_table
from llmscale.plan.rlhf import PoolMemory, pool_memories


def processes_on_a_node(config: Config) -> int:
    """Of all pools together, where they lie closest."""
    cluster = config.cluster
    processes = sum(pool.processes for pool in pools_of(config).values())
    return max(cluster.processes_per_node, -(-processes // cluster.nodes))


def rlhf_report(config: Config, vocabulary_size: int, device: Device) -> Group:
    """Placement, memory of a process of each pool, and what a step is made of."""
    memories = pool_memories(config, vocabulary_size)
    tables = [_memory_table(config, memory, device) for memory in memories]
    return Group(_placement_table(config), *tables, _step_table(config, vocabulary_size))


def _placement_table(config: Config) -> Table:
    table = titled_table("Pools")
    cpus = config.cluster.cpus_per_process or 1
    each = f"{cpus} CPU{'' if cpus == 1 else 's'}" + (" and 1 GPU" if config.cluster.gpus_per_node else "")
    pools = pools_of(config)
    for name, pool in pools.items():
        how = f", {pool.placement}" if pool.processes > 1 else ""
        table.add_row(f"{name}: {', '.join(pool.roles)}", f"{pool.processes} × {each}{how}")
    table.add_row("driver", "1 CPU")
    processes = sum(pool.processes for pool in pools.values())
    table.add_row(Text("processes in all", style="bold"), f"{processes} and the driver")
    return table


def _memory_table(config: Config, memory: PoolMemory, device: Device) -> Table:
    table = titled_table(f"Memory of a process of {memory.name} ({config.train.precision})")
    for role, own in memory.roles.items():
        section = config.rlhf.roles.of(role)
        layout = f"tensor {section.parallel.tensor} × pipeline {section.parallel.pipeline}"
        table.add_row(Text(f"{role} ({layout}, ZeRO-{section.zero_stage})", style="bold"), "")
        for kind, size in own.held.items():
            table.add_row(f"  {kind}", bytes_text(size))
        for kind, size in own.in_turn.items():
            table.add_row(f"  in its turn: {kind}", bytes_text(size))
    fits = memory.total <= device.memory
    said = f"{bytes_text(memory.total)} of {bytes_text(device.memory)} usable"
    which = f"held, and the turn of the {memory.fullest}"
    table.add_row(Text(f"{which}, on {device.name}", style="bold"), Text(said, "green" if fits else "red"))
    return table


def _step_table(config: Config, vocabulary_size: int) -> Table:
    rollout, train, table = config.rlhf.rollout, config.train, titled_table("Run")
    parameters = model_parameters(config.model, vocabulary_size, train.sequence_length, None).total
    answers = rollout.prompts * rollout.answers
    table.add_row("parameters of the actor", f"{parameters:,}")
    table.add_row("answers a step", f"{rollout.prompts} × {rollout.answers} = {answers:,}")
    table.add_row("tokens written a step, at most", f"{answers * rollout.max_new_tokens:,}")
    updates = config.rlhf.update.epochs * config.rlhf.update.minibatches
    table.add_row("updates a step", f"{updates}")
    table.add_row("steps", f"{train.steps:,}")
    return table
