"""What stands against a run, told before any rank starts: `train` and `submit` ask the same. No torch."""

from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path

from llmscale.config.problems import InputError, Problem
from llmscale.config.schema import Config
from llmscale.data.checks import check_data, resolved_vocabulary_size
from llmscale.model.peft.names import pattern_problems
from llmscale.plan.devices import RANK_OVERHEAD, USABLE, Device, device_named
from llmscale.plan.memory import fullest_rank
from llmscale.plan.neighbours import what_fits
from llmscale.plan.report import bytes_text
from llmscale.plan.rlhf_neighbours import too_large, what_fits_pools
from llmscale.plan.rlhf_report import processes_on_a_node
from llmscale.run.beginnings import check_base, check_init_from
from llmscale.run.committed import committed_step
from llmscale.runtime.run_folder import check_folder, check_resume

OF_TASK = {"rlhf": "llmscale.run.rlhf_admission:check_rlhf"}
"""What else is asked of a task: a function of its config and of the runs before, loaded where it is asked."""
MEMORY_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
"""Of `cluster.memory`, as SLURM reads it."""


def check_run(config: Config, before: Mapping[Path, Config] | None = None) -> list[Problem]:
    """Problems of data, run folder, resume and `train.init_from`.

    Args:
        config: of the run.
        before: run folders (absolute) that other runs will have filled by then, so that what lies in them
            need not be there yet.
    """
    before = before or {}
    folder = config.run_folder
    problems = check_data(config) + check_folder(folder)
    problems += pattern_problems(config.model, config.peft)
    if config.task in OF_TASK:
        module, _, function = OF_TASK[config.task].partition(":")
        problems += getattr(import_module(module), function)(config, before)
    committed = committed_step(folder)
    problems += check_resume(config, folder, committed)
    if committed is None or config.checkpoint.resume == "never":
        problems += check_init_from(config, before)
    else:
        problems += check_base(config)
    return [problem for problem in problems if not _comes_later(problem.value, before)]


def _comes_later(value: object, before: Mapping[Path, Config]) -> bool:
    """Whether a missing file lies in the folder of a run that comes first."""
    return isinstance(value, Path) and any(folder in before for folder in value.absolute().parents)


def check_fits(config: Config) -> Iterator[Problem]:
    """Whether the fullest rank's memory fits `cluster.device`, and what would fit."""
    name = config.cluster.device
    if name is None:
        return
    try:
        device = _device(config, name)
        vocabulary_size = resolved_vocabulary_size(config)
    except InputError as error:  # a missing tokenizer is told by the checks of data too
        yield from (problem for problem in error.problems if problem.key != "tokenizer.path")
        return
    if config.task == "rlhf":
        yield from _pools_fit(config, vocabulary_size, device)
        return
    stage, memory = fullest_rank(config, vocabulary_size)
    if memory.total <= device.memory:
        return
    ways_out = what_fits(config, vocabulary_size, device.memory)
    hint = "; what would fit: " + ", or ".join(" ".join(way) for way in ways_out) if ways_out else ""
    message = (
        f"a rank of pipeline stage {stage} needs {bytes_text(memory.total)} of {bytes_text(device.memory)}"
        f" usable{hint}"
    )
    yield Problem("cluster.device", name, message)


def _pools_fit(config: Config, vocabulary_size: int, device: Device) -> Iterator[Problem]:
    ways_out = what_fits_pools(config, vocabulary_size, device.memory)
    hint = "; what would fit: " + ", or ".join(" ".join(way) for way in ways_out) if ways_out else ""
    for message in too_large(config, vocabulary_size, device):
        yield Problem("cluster.device", config.cluster.device, message + hint)


def _device(config: Config, name: str) -> Device:
    """The device of a rank; of a CPU elsewhere, its share of the memory that is asked for.

    Raises:
        InputError: there is no such device.
    """
    cluster = config.cluster
    ranks = processes_on_a_node(config) if config.task == "rlhf" else cluster.processes_per_node
    if name.lower() == "cpu" and cluster.memory is not None:
        number, unit = cluster.memory.rstrip("KMGT"), cluster.memory[-1]
        node = int(number) * MEMORY_UNITS.get(unit, MEMORY_UNITS["M"])
        return Device("CPU", max(int(node * USABLE) // ranks - RANK_OVERHEAD, 0), None)
    try:
        return device_named(name, ranks)
    except InputError as error:
        raise InputError([Problem("cluster.device", name, error.problems[0].message)]) from None
