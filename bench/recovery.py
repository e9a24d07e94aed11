"""Seconds that a run stands still after a fault: SIGKILL of a rank, loss of a node, a rank that hangs.

python -m bench.recovery [--quick] [--kills N] [--losses N] [--hangs N] [--output FOLDER]

The same training function on the same model, under llmscale's agents and under torchrun, in alternation.
Nodes are agents with process groups of their own on this machine. A step counts when its line stands in
metrics.jsonl.
"""

import argparse
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from bench.rounds import free_port, machine, write_json
from llmscale.config.schema import Config
from llmscale.data.corpus import CorpusInfo, corpus_file, write_index, write_info
from llmscale.run.entry import main as train
from llmscale.runtime.events import Event, read_events
from llmscale.runtime.metrics import last_metrics
from llmscale.runtime.run_folder import write_config

RANKS = 2
VOCABULARY = 1000
POLL_SECONDS = 0.005
LIMIT_SECONDS = 60.0
"""After which a contender counts as not recovered."""
HANG_LIMIT_SECONDS = 30.0


def main() -> None:
    if sys.argv[1:2] == ["rank"]:
        sys.exit(train(Path(sys.argv[2])))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one of each: does it run at all")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--losses", type=int, default=5)
    parser.add_argument("--hangs", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("bench/results"))
    options = parser.parse_args()
    kills, losses, hangs = (1, 1, 1) if options.quick else (options.kills, options.losses, options.hangs)
    rows: list[dict[str, Any]] = []
    for what, count, nodes, disturb in (
        ("SIGKILL of a rank → next step", kills, 1, kill_rank),
        ("loss of a node → next step", losses, 2, lose_node),
        ("a rank hangs → it is named", hangs, 1, stop_rank),
    ):
        for contender in (Llmscale, Torchrun):
            rows.append({"what": what, "by": contender.name, **measure(contender, nodes, count, disturb)})
    write_json(options.output / "recovery.json", {"machine": machine(), "rows": rows})
    report(rows)


@dataclass
class Contender:
    """A run of two ranks on one or two nodes, each node's launcher in a process group of its own."""

    folder: Path
    nodes: int
    port: int = field(default_factory=free_port)
    launchers: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    name = ""

    def command(self, node: int) -> tuple[list[str], dict[str, str]]:
        """What starts the launcher of a node, and the variables that it needs."""
        raise NotImplementedError

    def rank_pid(self, rank: int) -> int:
        raise NotImplementedError

    def start(self) -> None:
        self.launchers = [self.start_node(node) for node in range(self.nodes)]

    def start_node(self, node: int) -> "subprocess.Popen[bytes]":
        command, variables = self.command(node)
        with (self.folder / f"launcher-{node}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, *command],
                env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill_node(self, node: int) -> None:
        """The launcher and everything that it started, at once."""
        launcher = self.launchers[node]
        family = psutil.Process(launcher.pid).children(recursive=True)
        for process in [psutil.Process(launcher.pid), *family]:
            process.kill()
        launcher.wait()
        psutil.wait_procs(family, timeout=10)

    def end(self) -> None:
        for node, launcher in enumerate(self.launchers):
            if launcher.poll() is None:
                self.kill_node(node)


class Llmscale(Contender):
    name = "llmscale"

    def command(self, node: int) -> tuple[list[str], dict[str, str]]:
        variables = {
            "LLMSCALE_NODE": str(node),
            "LLMSCALE_NODES": str(self.nodes),
            "LLMSCALE_RENDEZVOUS": f"127.0.0.1:{self.port}",
        }
        return ["-m", "llmscale", "cluster", "node", str(self.folder)], variables

    def rank_pid(self, rank: int) -> int:
        log = (self.folder / "logs" / f"rank-{rank}.log").read_text()
        return int(re.findall(rf"^--- rank {rank} pid (\d+) ", log, re.MULTILINE)[-1])


class Torchrun(Contender):
    name = "torchrun"

    def command(self, node: int) -> tuple[list[str], dict[str, str]]:
        # Without the variable, restarts under gloo fail.
        variables = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        options = [
            f"--nnodes={'1' if self.nodes == 1 else f'1:{self.nodes}'}",
            f"--nproc-per-node={RANKS // self.nodes}",
            "--max-restarts=1000",
            "--monitor-interval=0.1",
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint=127.0.0.1:{self.port}",
            f"--rdzv-conf=is_host={'true' if node == 0 else 'false'}",
            "--local-addr=127.0.0.1",
        ]
        return [
            "-m",
            "torch.distributed.run",
            *options,
            "-m",
            "bench.recovery",
            "rank",
            str(self.folder),
        ], variables

    def rank_pid(self, rank: int) -> int:
        for launcher in self.launchers:
            for process in psutil.Process(launcher.pid).children(recursive=True):
                if process.environ().get("RANK") == str(rank):
                    return process.pid
        raise RuntimeError(f"torchrun has no rank {rank}")


def measure(
    kind: type[Contender], nodes: int, count: int, disturb: Callable[[Contender, random.Random], float | None]
) -> dict[str, Any]:
    """Seconds of `count` disturbances of one run; None stands for one that was not overcome."""
    chance = random.Random(1)
    # Asked to stop, too, this leaves no launcher behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory() as place:
        contender = kind(make_run(Path(place), nodes), nodes)
        contender.start()
        try:
            wait_for_steps(contender, 12)
            seconds: list[float | None] = []
            for number in range(count):
                seconds.append(disturb(contender, chance))
                print(f"{kind.name}: {disturb.__name__} {number + 1}/{count}: {seconds[-1]}", flush=True)
                if seconds[-1] is None:
                    break
        finally:
            contender.end()
    return {"seconds": seconds, "asked": count}


def make_run(place: Path, nodes: int) -> Path:
    """A run folder of a tiny model on random tokens, with a checkpoint every 10 steps and no end."""
    folder = place / "run"
    (folder / "logs").mkdir(parents=True)
    config = Config.model_validate(
        {
            "run": {"root": str(place), "name": "run"},
            "model": {"hidden_size": 64, "layers": 2, "heads": 4, "vocabulary_size": VOCABULARY},
            "data": {"train": [{"path": str(write_corpus(place / "corpus"))}]},
            "train": {
                "steps": 1_000_000,
                "global_batch_size": 8,
                "micro_batch_size": 1,
                "sequence_length": 32,
                "precision": "fp32",
            },
            "checkpoint": {"every": 10},
            "cluster": {
                "nodes": nodes,
                "processes_per_node": RANKS // nodes,
                "threads": 1,
                **({"elastic": 1} if nodes > 1 else {}),
            },
            "logging": {"wandb": "off", "progress": "off"},
        }
    )
    write_config(config, folder)
    return folder


def write_corpus(prefix: Path) -> Path:
    lengths = np.full(2000, 100, np.int32)
    tokens = np.random.RandomState(0).randint(0, VOCABULARY, int(lengths.sum())).astype(np.uint16)
    corpus_file(prefix, ".bin").write_bytes(tokens.tobytes())
    with corpus_file(prefix, ".idx").open("wb") as file:
        write_index(file, [lengths], np.uint16)
    info = CorpusInfo(
        tokenizer_hash="0" * 64,
        vocabulary_size=VOCABULARY,
        end_of_document_id=0,
        documents=len(lengths),
        tokens=len(tokens),
        text_bytes=4 * len(tokens),
        sources=["random"],
        bin_bytes=corpus_file(prefix, ".bin").stat().st_size,
        idx_bytes=corpus_file(prefix, ".idx").stat().st_size,
    )
    with corpus_file(prefix, ".json").open("wb") as file:
        write_info(info, file)
    return prefix


def kill_rank(contender: Contender, chance: random.Random) -> float | None:
    pid = contender.rank_pid(chance.randrange(RANKS))
    return until_next_step(contender, lambda: os.kill(pid, signal.SIGKILL))


def lose_node(contender: Contender, _: random.Random) -> float | None:
    """The second node, which comes back before the next loss."""
    seconds = until_next_step(contender, lambda: contender.kill_node(1))
    if seconds is not None:
        known = len(resumptions(contender))
        contender.launchers[1] = contender.start_node(1)
        wait_for(lambda: len(resumptions(contender)) > known, LIMIT_SECONDS)
        wait_for_steps(contender, 12)
    return seconds


def stop_rank(contender: Contender, chance: random.Random) -> float | None:
    """The rank that does not move, until an event names it and no other."""
    rank = chance.randrange(RANKS)
    pid = contender.rank_pid(rank)
    known = len(named(contender))
    begin = time.monotonic()
    os.kill(pid, signal.SIGSTOP)
    try:
        if not wait_for(lambda: len(named(contender)) > known, HANG_LIMIT_SECONDS):
            return None
        seconds = time.monotonic() - begin
        event = named(contender)[-1]
        return seconds if event.details["rank"] == rank else None
    finally:
        os.kill(pid, signal.SIGCONT)
        wait_for_steps(contender, 12)


def until_next_step(contender: Contender, disturb: Callable[[], None]) -> float | None:
    known = len(resumptions(contender))
    begin = time.monotonic()
    disturb()
    if not wait_for(lambda: len(resumptions(contender)) > known, LIMIT_SECONDS):
        return None
    resumed = resumptions(contender)[-1].step or 0
    if not wait_for(lambda: last_step(contender) > resumed, LIMIT_SECONDS):
        return None
    seconds = time.monotonic() - begin
    wait_for_steps(contender, 12)
    return seconds


def resumptions(contender: Contender) -> list[Event]:
    return [event for event in read_events(contender.folder) if event.kind == "resumed"]


def named(contender: Contender) -> list[Event]:
    return [event for event in read_events(contender.folder) if event.kind == "hanging"]


def last_step(contender: Contender) -> int:
    metrics = last_metrics(contender.folder)
    return int(metrics["step"]) if metrics else 0


def wait_for_steps(contender: Contender, steps: int) -> None:
    """Until there are `steps` more: enough for a checkpoint in between.

    Raises:
        RuntimeError: they do not come.
    """
    goal = last_step(contender) + steps
    if not wait_for(lambda: last_step(contender) >= goal, LIMIT_SECONDS):
        logs = "\n".join(path.read_text()[-2000:] for path in contender.folder.glob("launcher-*.log"))
        raise RuntimeError(f"{contender.name} stands still at step {last_step(contender)}:\n{logs}")


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(POLL_SECONDS)
    return False


def report(rows: list[dict[str, Any]]) -> None:
    table = Table("what", "by", "median s", "worst s", "of")
    for row in rows:
        found = [seconds for seconds in row["seconds"] if seconds is not None]
        median, worst = (
            (f"{statistics.median(found):.2f}", f"{max(found):.2f}") if found else ("never", "never")
        )
        table.add_row(row["what"], row["by"], median, worst, f"{len(found)}/{len(row['seconds'])}")
    Console().print(table)


if __name__ == "__main__":
    main()
