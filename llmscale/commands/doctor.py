"""`llmscale doctor`: what is installed here, what this machine can do, and what is off without what."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import psutil
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llmscale.commands.doctor_site import doctor_slurm

REQUIRED = (
    "torch",
    "megatron-core",
    "deepspeed",
    "transformers",
    "tokenizers",
    "sentencepiece",
    "safetensors",
    "pydantic",
)
OPTIONAL = {
    "datasets": "data tokenize cannot read names from the Hugging Face hub",
    "pyarrow": "data tokenize cannot read parquet",
    "zstandard": "data tokenize cannot read .zst",
    "wandb": "metrics go to the run folder only",
    "matplotlib": "report makes no pictures",
    "triton": "kernels run as plain torch operations",
    "ray": "cluster.kind=ray is refused",
}
"""Package -> what is off without it."""

CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile", "asimd", "bf16")

Row = tuple[bool, str, str]
"""Whether it is as it should be, what it is, what was found."""


def doctor(
    cluster: Annotated[
        Literal["slurm"] | None, typer.Option(help="Look at the SLURM of this login node instead.")
    ] = None,
    partition: Annotated[str | None, typer.Option(help="With --cluster: the profile's partition.")] = None,
    config: Annotated[Path | None, typer.Option(help="With --cluster: would this config fit?")] = None,
    output: Annotated[Path | None, typer.Option(help="With --cluster: write the profile here.")] = None,
) -> None:
    """What is installed here, and which fast paths are on. Exit code 1: something needed is missing."""
    if cluster is not None:
        doctor_slurm(partition, config, output)
        return
    console = Console()
    sound = True
    for title, rows in (
        ("machine", machine()),
        ("packages", packages()),
        ("optional", optional()),
        ("torch", torch_rows()),
    ):
        table = Table.grid(padding=(0, 2))
        for good, name, found in rows:
            sound = sound and (good or title == "optional")
            mark = (
                Text("ok", style="green")
                if good
                else Text("--" if title == "optional" else "!!", style="yellow")
            )
            table.add_row("  ", mark, name, Text(found))
        console.print(Text(title, style="bold"))
        console.print(table)
    raise typer.Exit(0 if sound else 1)


def machine() -> Iterator[Row]:
    yield sys.version_info >= (3, 10), "python", f"{platform.python_version()} at {sys.executable}"
    flags = cpu_flags()
    cores = len(os.sched_getaffinity(0))
    yield (
        True,
        "cpu",
        f"{cores} cores, {platform.machine()}, {' '.join(flags) or 'no vector extensions known'}",
    )
    slow = not {"avx512_bf16", "amx_bf16", "bf16"} & set(flags)
    yield (
        True,
        "bf16 on cpu",
        "emulated, slower than fp32: use train.precision=fp32 here" if slow else "in hardware",
    )
    memory = psutil.virtual_memory()
    yield True, "memory", f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free"
    shared = shutil.disk_usage("/dev/shm") if Path("/dev/shm").is_dir() else None
    if shared:
        enough = shared.total >= 2**28
        yield (
            enough,
            "shared memory",
            f"/dev/shm has {shared.total / 2**30:.1f} GiB" + ("" if enough else ", too few"),
        )
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    version = (
        _first_line([compiler, "--version"]) if compiler else "none; DeepSpeed's operations cannot be built"
    )
    yield compiler is not None, "C++ compiler", version


def cpu_flags() -> list[str]:
    """Those of `CPU_FLAGS` that this processor has."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return []
    lines = [line for line in path.read_text().splitlines() if line.startswith(("flags", "Features"))]
    have = set(lines[0].partition(":")[2].split()) if lines else set()
    return [flag for flag in CPU_FLAGS if flag in have]


def packages() -> Iterator[Row]:
    for name in REQUIRED:
        version = version_of(name)
        yield version is not None, name, version or "missing: pip install llmscale"


def optional() -> Iterator[Row]:
    for name, loss in OPTIONAL.items():
        version = version_of(name)
        yield version is not None, name, version or f"not installed: {loss}"


def version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def torch_rows() -> Iterator[Row]:
    """What takes torch to find out."""
    if importlib.util.find_spec("torch") is None:
        yield False, "torch", "missing"
        return
    import torch  # noqa: PLC0415 -- only this part needs it
    import torch.distributed  # noqa: PLC0415
    from llmscale_kernels.cpu import library  # noqa: PLC0415 -- loads torch
    from llmscale_kernels.dispatch import path_and_reason  # noqa: PLC0415
    from llmscale_kernels.gpu import attention  # noqa: PLC0415

    from llmscale.parallel.cores import numa_nodes  # noqa: PLC0415 -- loads torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            yield True, f"gpu {index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
            yield True, f"attention of gpu {index}", attention.path_and_reason(torch.device("cuda", index))
        yield torch.distributed.is_nccl_available(), "collectives", "nccl"
    else:
        yield True, "gpu", "none: ranks compute on the CPU"
        yield torch.distributed.is_gloo_available(), "collectives", "gloo"
    yield True, "threads", f"{torch.get_num_threads()} here; cluster.threads sets them for each rank"
    nodes = numa_nodes()
    binding = "each rank is kept on one (cluster.numa_binding)" if len(nodes) > 1 else "nothing to bind to"
    yield True, "NUMA nodes", f"{len(nodes)}; {binding}"
    yield from products()
    yield True, "element-wise kernels", path_and_reason(torch.cuda.is_available())
    choice = library.choice()
    yield choice.library is not None, "kernels for CPUs", choice.reason
    yield from extensions()


def products() -> Iterator[Row]:
    """Who computes the matrix products of linear layers on CPUs."""
    import torch  # noqa: PLC0415 -- takes a second
    from llmscale_kernels import matmul  # noqa: PLC0415 -- loads torch
    from llmscale_kernels.cpu.library import processor_vendor  # noqa: PLC0415 -- likewise

    maker = processor_vendor() or "a maker that is not known"
    paths = {
        "llmscale": "large ones by llmscale's own kernel, quicker than MKL and oneDNN",
        "oneDNN": "oneDNN, quicker than MKL",
        "torch": "torch's own choice",
    }
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        yield True, f"{name} products", f"{paths[matmul.library(dtype)]} (processor of {maker})"
    yield matmul.has_onednn(), "packed weights", "while texts are written" if matmul.has_onednn() else "none"


def extensions() -> Iterator[Row]:
    """The operations that DeepSpeed compiles, and locks that builds have left behind."""
    from llmscale.parallel.extensions import remove_stale_locks, use_prebuilt_extensions  # noqa: PLC0415

    folder = use_prebuilt_extensions()
    if folder is None:
        yield True, "DeepSpeed operations", "in torch's cache of this user"
        return
    removed = remove_stale_locks(folder)
    built = sorted(path.stem for path in folder.glob("*/*.so"))
    found = (
        ", ".join(built) or "none built; the first run waits half a minute: python -m llmscale.run.build_ops"
    )
    yield bool(built), "DeepSpeed operations", found
    if removed:
        yield True, "stale build locks", f"removed {len(removed)}, which every start would have waited for"


def _first_line(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.partition("\n")[0]
