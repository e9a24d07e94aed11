"""Contenders in fresh processes, in interleaved rounds, so that a slow minute of the machine hits all."""

import contextlib
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import torch


class Assignment(Protocol):
    """What a contender is to do."""

    @property
    def ranks(self) -> int: ...

    @property
    def threads(self) -> int:
        """Of each rank."""
        ...

    def as_argument(self) -> str: ...


@dataclass(frozen=True)
class Contender:
    name: str
    module: str
    """Program that is run with the workload as its argument."""
    workload: Assignment
    interpreter: str = sys.executable
    """Python that runs it. What llmscale is compared with has one of its own (`bench/peers.py`)."""


def run_rounds(contenders: list[Contender], rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Results by contender, one a round: A B C, A B C, …"""
    results: dict[str, list[dict[str, Any]]] = {contender.name: [] for contender in contenders}
    for number in range(rounds):
        for contender in contenders:
            results[contender.name].append(run(contender))
            last = results[contender.name][-1]
            value = last.get("tokens_per_second") or last["flops_per_second"]
            print(f"round {number + 1}/{rounds}  {contender.name:<40} {value:,.0f}", flush=True)
    return results


def run(contender: Contender) -> dict[str, Any]:
    """One run in `ranks` fresh processes; what the first of them prints last.

    Raises:
        RuntimeError: a process fails; carries the end of its output. The others are ended.
    """
    command = [contender.interpreter, "-m", contender.module, contender.workload.as_argument()]
    ranks, port = contender.workload.ranks, free_port()
    with contextlib.ExitStack() as stack:
        outputs = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(ranks)]
        processes: list[subprocess.Popen[str]] = []
        stack.callback(end, processes)
        for rank, output in enumerate(outputs):
            variables = rank_variables(rank, ranks, port, contender.workload.threads)
            processes.append(
                subprocess.Popen(
                    command, env=os.environ | variables, stdout=output, stderr=subprocess.STDOUT, text=True
                )
            )
        wait(contender.name, processes, outputs)
        outputs[0].seek(0)
        return json.loads(next(line for line in reversed(outputs[0].readlines()) if line.startswith("{")))


def wait(name: str, processes: list[subprocess.Popen[str]], outputs: Sequence[IO[str]]) -> None:
    """Until all have ended, or one has failed: the others would wait for it."""
    codes: list[int | None] = [None]
    while None in codes and not any(codes):
        time.sleep(0.05)
        codes = [process.poll() for process in processes]
    for process, output in zip(processes, outputs):
        if process.returncode:
            output.seek(0)
            raise RuntimeError(f"{name} failed ({process.returncode}):\n{output.read()[-3000:]}")


def end(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait()


def rank_variables(rank: int, ranks: int, port: int, threads: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": str(threads),
    }


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def median_and_spread(values: list[float]) -> tuple[float, float]:
    """The median, and the distance from smallest to largest as a share of it."""
    median = statistics.median(values)
    return median, (max(values) - min(values)) / median


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": processor(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
    }


def processor() -> str:
    information = Path("/proc/cpuinfo")
    if not information.exists():
        return platform.processor() or platform.machine()
    names = [
        line.split(":")[1].strip()
        for line in information.read_text().splitlines()
        if line.startswith("model name")
    ]
    return names[0] if names else platform.machine()


def write_json(path: Path, results: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
