"""What a device offers: memory, and dense bf16 operations a second by its data sheet."""

import difflib
from dataclasses import dataclass

import psutil

from llmscale.config.problems import InputError, Problem

USABLE = 0.92
"""Share of the memory that training can have; drivers, collectives and fragmentation take the rest."""
RANK_OVERHEAD = 600 * 2**20
"""Bytes that a rank's process has on a CPU before it holds any tensor: Python, torch and the libraries."""


@dataclass(frozen=True)
class Device:
    name: str
    memory: int
    """Bytes that one rank can use for tensors."""
    peak_flops: float | None
    """Dense bf16 operations a second; None where no data sheet says."""


def _gpu(name: str, gigabytes: float, teraflops: float) -> Device:
    return Device(name, int(gigabytes * 1e9 * USABLE), teraflops * 1e12)


GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("A10G", 24, 70),
        _gpu("L4", 24, 121),
        _gpu("L40S", 48, 362),
        _gpu("A100-40GB", 40, 312),
        _gpu("A100", 80, 312),
        _gpu("H100", 80, 989),
        _gpu("H200", 141, 989),
        _gpu("B200", 180, 2250),
        _gpu("RTX4090", 24, 165),
        _gpu("V100", 32, 125),
    )
}


def device_named(name: str, ranks_per_node: int) -> Device:
    """A GPU of the table by name, or with "cpu" one rank's share of this machine.

    Raises:
        InputError: for a name that is not in the table.
    """
    if name.lower() == "cpu":
        share = int(psutil.virtual_memory().total * USABLE) // ranks_per_node - RANK_OVERHEAD
        return Device("this machine's CPU", max(share, 0), None)
    by_lower_name = {known.lower(): device for known, device in GPUS.items()}
    if name.lower() in by_lower_name:
        return by_lower_name[name.lower()]
    close = difflib.get_close_matches(name.lower(), by_lower_name, 1)
    hint = f"did you mean {by_lower_name[close[0]].name}?" if close else f"there are: cpu, {', '.join(GPUS)}"
    raise InputError([Problem("--device", name, f"unknown device; {hint}")])
