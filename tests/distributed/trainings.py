"""Whole runs of a tiny model on a made-up corpus, and what they leave: the stream of steps, the tensors.

A training starts either as a user starts it, by the command line in a process group of its own, or by
the same function in this process, whose ranks come from the test session's preloaded server.
"""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from llmscale.checkpoint.store import Store
from llmscale.commands.train import run_training
from llmscale.config.load import load_config
from llmscale.runtime.events import Event, read_events
from llmscale.runtime.metrics import SUPERSEDED_NAME, read_metrics
from tests.data.corpora import write_corpus

EXACT = ("step", "samples", "tokens", "loss", "grad_norm", "lr")
"""What of a line of metrics must not depend on what happened on the way; the rest is speed."""

TP2_PP2 = ("parallel.tensor=2", "parallel.pipeline=2", "cluster.processes_per_node=4")
PP2_INTERLEAVED = (
    "parallel.pipeline=2",
    "parallel.interleave=2",
    "model.layers=4",
    "cluster.processes_per_node=2",
)
DP2 = ("cluster.processes_per_node=2",)

SECTIONS: dict[str, dict[str, Any]] = {
    "model": {"hidden_size": 64, "layers": 2, "heads": 4, "vocabulary_size": 1000},
    "train": {"steps": 12, "global_batch_size": 8, "sequence_length": 32, "precision": "fp32"},
    "optimizer": {"lr": 1e-3, "warmup_steps": 3},
    "checkpoint": {"every": 3},
    "cluster": {"threads": 1, "max_restarts": 20},
    "logging": {"wandb": "off", "progress": "off"},
}


@dataclass(frozen=True)
class Place:
    """A folder with a corpus and a config, for any number of runs."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> "Place":
        corpus = write_corpus(folder / "corpus")
        config = {
            **SECTIONS,
            "data": {"train": [{"path": str(corpus)}]},
            "run": {"root": str(folder / "runs")},
        }
        (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
        return cls(folder)

    @property
    def config(self) -> Path:
        return self.folder / "tiny.yaml"

    def run(self, name: str) -> "Run":
        return Run(self.folder / "runs" / name)

    def train(self, name: str, *overrides: str) -> int:
        """Train in this process (with an agent and ranks all the same); returns the exit code."""
        return run_training(load_config(self.config, [*overrides, f"run.name={name}"]))

    def uninterrupted(self, name: str, *overrides: str) -> "Run":
        """The oracle: a run that nothing disturbs."""
        assert self.train(name, *overrides) == 0, self.run(name).rank_logs()
        return self.run(name)

    def start(self, name: str, *overrides: str) -> "Command":
        """`python -m llmscale train` in a process group of its own."""
        command = [
            sys.executable,
            "-m",
            "llmscale",
            "train",
            str(self.config),
            *overrides,
            f"run.name={name}",
        ]
        output = (self.folder / f"{name}.log").open("a")
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        return Command(process, Path(output.name))


@dataclass(frozen=True)
class Command:
    """A running `llmscale train`."""

    process: "subprocess.Popen[bytes]"
    output: Path

    def send(self, number: signal.Signals, to_group: bool = False) -> None:
        if to_group:
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)

    def wait(self, seconds: float = 120) -> int:
        """Its exit code; what is left of its process group is ended."""
        try:
            return self.process.wait(seconds)
        finally:
            if self.process.poll() is None:
                self.send(signal.SIGKILL, to_group=True)
                self.process.wait()

    def __enter__(self) -> "Command":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.send(signal.SIGKILL, to_group=True)
            self.process.wait()


@dataclass(frozen=True)
class Run:
    """A run folder, looked at from outside."""

    folder: Path

    def stream(self) -> list[tuple[float, ...]]:
        """The exact part of each step's line."""
        return [exact(line) for line in read_metrics(self.folder)]

    def superseded(self) -> list[tuple[float, ...]]:
        path = self.folder / SUPERSEDED_NAME
        return [exact(json.loads(line)) for line in path.open()] if path.exists() else []

    def last_step(self) -> int:
        lines = read_metrics(self.folder)
        return lines[-1]["step"] if lines else 0

    def events(self, kind: str) -> list[Event]:
        return [event for event in read_events(self.folder) if event.kind == kind]

    def committed_steps(self) -> list[int]:
        return [
            found.step
            for found in Store(self.folder / "checkpoints").checkpoints()
            if found.state == "committed"
        ]

    def saving(self) -> bool:
        """Whether a save is under way at this moment."""
        checkpoints = self.folder / "checkpoints"
        return checkpoints.is_dir() and any(checkpoints.glob(".*.partial"))

    def tensors(self, step: int | None = None) -> dict[str, Tensor]:
        """The whole logical tensors of a checkpoint (the newest), read without llmscale's loader."""
        step = step or self.committed_steps()[-1]
        return logical_tensors(self.folder / "checkpoints" / f"step-{step:08d}")

    def rank_logs(self) -> str:
        return "\n".join(path.read_text() for path in sorted((self.folder / "logs").glob("rank-*.log")))


def exact(line: dict[str, Any]) -> tuple[float, ...]:
    return tuple(line[key] for key in EXACT)


def logical_tensors(checkpoint: Path) -> dict[str, Tensor]:
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    shards = [load_file(checkpoint / shard["file"]) for shard in manifest["shards"]]
    tensors: dict[str, Tensor] = {}
    for name, entry in manifest["tensors"].items():
        for box in entry["boxes"]:
            stored = shards[box["shard"]][f"{name}@{','.join(map(str, box['start']))}"]
            whole = tensors.setdefault(name, torch.full(entry["shape"], float("nan"), dtype=stored.dtype))
            whole[tuple(slice(a, a + n) for a, n in zip(box["start"], box["size"]))] = stored
    return tensors


def assert_same_run(run: Run, oracle: Run) -> None:
    """Each step stands once and equals the oracle's to the bit, superseded ones too; so do the tensors."""
    expected = oracle.stream()
    assert run.stream() == expected
    of_step = {line[0]: line for line in expected}
    assert all(line == of_step[line[0]] for line in run.superseded())
    assert_same_tensors(run.tensors(), oracle.tensors())


def assert_same_tensors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    different = [name for name, tensor in expected.items() if not torch.equal(found[name], tensor)]
    assert not different, f"{len(different)} of {len(expected)} tensors differ: {different[:5]}"
