"""Trained under one layout, saved, loaded under another, saved again and trained on: what came of it.

The oracle is the writer itself, which goes on without a break. Many layouts of as many ranks take turns
in the same processes.
"""

import gc
import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import torch

from llmscale.checkpoint.checkpointer import Checkpointer
from llmscale.config.schema import CheckpointSection, Config
from llmscale.data.batch import Batch
from llmscale.engine.engine import Engine
from llmscale.objectives.causal_lm import CausalLM
from llmscale.parallel.layout import Layout
from llmscale.parallel.world import World
from tests.distributed.trainings import logical_tensors
from tests.ranks import run_ranks

SAVED_STEP = 3
GLOBAL_BATCH = 4
LENGTH = 16
VOCABULARY = 101
"""Odd, so padded under every tensor size."""

LAYOUTS: dict[str, dict[str, Any]] = {
    "1 rank": {},
    "DP2 ZeRO-1": {"data": 2},
    "TP2": {"tensor": 2},
    "PP4": {"pipeline": 4},
    "DP4 ZeRO-3": {"data": 4, "zero": 3},
    "TP2+SP": {"tensor": 2, "sequence": True},
    "PP2×DP2": {"pipeline": 2, "data": 2},
    "DP2 ZeRO-2": {"data": 2, "zero": 2},
    "TP4": {"tensor": 4},
    "PP2": {"pipeline": 2},
    "TP2×DP2 ZeRO-3": {"tensor": 2, "data": 2, "zero": 3},
    "PP2 interleaved": {"pipeline": 2, "interleave": 2},
    "DP4 ZeRO-2": {"data": 4, "zero": 2},
    "TP2×PP2": {"tensor": 2, "pipeline": 2},
    "DP2 ZeRO-3": {"data": 2, "zero": 3},
    "TP2×DP2 ZeRO-1": {"tensor": 2, "data": 2},
    "DP4 ZeRO-1": {"data": 4},
}
"""In an order in which neighbours have little in common."""

Patches = Mapping[str, Any]
"""Dotted name → what stands there instead in the reading ranks: a planted mistake."""
Result = TypeVar("Result")


@dataclass(frozen=True)
class Kind:
    """What of a model does not depend on the layout."""

    tied: bool = False
    precision: str = "fp32"

    def layouts(self) -> list[str]:
        """Those that it can be trained under: DeepSpeed's ZeRO-3 has no float64."""
        return [n for n, layout in LAYOUTS.items() if self.precision != "fp64" or layout.get("zero") != 3]

    def config(self, layout: str) -> Config:
        parallel = dict(LAYOUTS[layout])
        data, zero = parallel.pop("data", 1), parallel.pop("zero", 1)
        pipeline = parallel.get("pipeline", 1)
        return Config.model_validate(
            {
                "model": {
                    "hidden_size": 32,
                    "layers": 4,
                    "heads": 4,
                    "ffn_size": 48,
                    "vocabulary_size": VOCABULARY,
                    "tie_embeddings": self.tied,
                },
                "train": {
                    "steps": 300,
                    "global_batch_size": GLOBAL_BATCH,
                    # A pipeline gets two microbatches, everything else one.
                    "micro_batch_size": max(1, GLOBAL_BATCH // data // (2 if pipeline > 1 else 1)),
                    "sequence_length": LENGTH,
                    "precision": self.precision,
                },
                "optimizer": {"lr": 1e-3, "warmup_steps": 10},
                "parallel": parallel,
                "zero": {"stage": zero},
                "cluster": {"processes_per_node": parallel.get("tensor", 1) * pipeline * data},
            }
        )


@dataclass(frozen=True)
class Written:
    """A checkpoint at `SAVED_STEP`, and how its writer went on."""

    folder: Path
    """Of the run's checkpoints."""
    losses: list[float]
    """Of the steps after the save."""


@dataclass(frozen=True)
class Outcome:
    """Of one ordered pair of layouts."""

    writer: str
    reader: str
    different: list[str] = field(repr=False)
    """Stored tensors (weights, first and second moments) of other bytes than the writer's."""
    next_loss: float
    """Relative difference of the first loss after loading."""
    further_loss: float
    """Largest relative difference over all losses after loading."""

    def check(self, next_within: float, further_within: float) -> None:
        pair = f"{self.writer} → {self.reader}"
        assert not self.different, (
            f"{pair}: {len(self.different)} stored tensors differ: {self.different[:3]}"
        )
        assert self.next_loss <= next_within, f"{pair}: next loss {self.next_loss:.1e} apart"
        assert self.further_loss <= further_within, f"{pair}: further losses {self.further_loss:.1e} apart"


def write(
    kind: Kind,
    layouts: Iterable[str],
    folder: Path,
    further: Mapping[str, int],
    timeout_seconds: float = 240,
) -> dict[str, Written]:
    """Train and save under each layout, then take `further` steps more."""
    written: dict[str, Written] = {}
    for size, names in _by_world_size(kind, layouts).items():
        jobs = [(kind.config(name), folder / f"written by {name}", further.get(name, 1)) for name in names]
        losses = run_ranks(size, _write_rank, jobs, timeout_seconds=timeout_seconds)[0]
        for name, (_, place, _), of_layout in zip(names, jobs, losses, strict=True):
            written[name] = Written(place, of_layout)
    return written


def read(
    kind: Kind,
    written: Mapping[str, Written],
    pairs: Sequence[tuple[str, str]],
    folder: Path,
    further: Mapping[tuple[str, str], int],
    patches: Patches | None = None,
    timeout_seconds: float = 240,
) -> list[Outcome]:
    """Load, save again, and go on for `further` steps (else 1), for each pair (writer, reader)."""
    outcomes: list[Outcome] = []
    for size, readers in _by_world_size(kind, dict.fromkeys(reader for _, reader in pairs)).items():
        jobs = []
        for reader in readers:
            moves = [
                (written[pair[0]].folder, folder / f"{pair[0]} to {reader}", further.get(pair, 1))
                for pair in pairs
                if pair[1] == reader
            ]
            jobs.append((kind.config(reader), moves))
        found = run_ranks(size, _read_rank, jobs, patches or {}, timeout_seconds=timeout_seconds)[0]
        for reader, (_, moves), losses in zip(readers, jobs, found, strict=True):
            writers = [writer for writer, other in pairs if other == reader]
            for writer, (_, target, _), ours in zip(writers, moves, losses, strict=True):
                outcomes.append(_outcome(writer, reader, written[writer], target, ours))
    return outcomes


def _by_world_size(kind: Kind, layouts: Iterable[str]) -> dict[int, list[str]]:
    sizes: dict[int, list[str]] = {}
    for name in layouts:
        sizes.setdefault(kind.config(name).world_size, []).append(name)
    return sizes


def _outcome(writer: str, reader: str, written: Written, target: Path, ours: list[float]) -> Outcome:
    before, after = stored_hashes(written.folder), stored_hashes(target)
    # NaN would be smaller than nothing to `max`.
    apart = [abs(a - b) / abs(b) if math.isfinite(a) else math.inf for a, b in zip(ours, written.losses)]
    assert len(apart) == len(ours), "the writer did not go on far enough"
    different = sorted(n for n in before.keys() | after.keys() if before.get(n) != after.get(n))
    return Outcome(writer, reader, different, apart[0], max(apart))


def stored_hashes(checkpoints: Path) -> dict[str, str]:
    """SHA-256 of each whole tensor of the saved step, read without llmscale's loader."""
    tensors = logical_tensors(checkpoints / f"step-{SAVED_STEP:08d}")
    return {name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for name, tensor in tensors.items()}


def _write_rank(_: int, jobs: Sequence[tuple[Config, Path, int]]) -> list[list[float]]:
    return [
        in_layout(config, lambda engine, job=(folder, further): _write(engine, *job))
        for config, folder, further in jobs
    ]


def _write(engine: Engine, folder: Path, further: int) -> list[float]:
    _train(engine, 0, SAVED_STEP)
    _save(engine, folder)
    return _train(engine, SAVED_STEP, further)


def _read_rank(
    _: int, jobs: Sequence[tuple[Config, Sequence[tuple[Path, Path, int]]]], patches: Patches
) -> list[list[list[float]]]:
    with ExitStack() as stack:
        for name, replacement in patches.items():
            stack.enter_context(mock.patch(name, replacement))
        return [
            in_layout(config, lambda engine, moves=moves: [_move(engine, *move) for move in moves])
            for config, moves in jobs
        ]


def _move(engine: Engine, source: Path, target: Path, further: int) -> list[float]:
    loaded = _checkpointer(engine, source).load_newest(engine.pieces_to_load())
    assert loaded is not None and loaded.step == SAVED_STEP
    engine.after_load(loaded.progress)
    _save(engine, target)
    return _train(engine, SAVED_STEP, further)


def _save(engine: Engine, folder: Path) -> None:
    checkpointer = _checkpointer(engine, folder)
    assert checkpointer.load_newest(engine.pieces_to_load()) is None
    checkpointer.save(engine.steps_done, engine.pieces_to_save(), dict(engine.counters()))


def _checkpointer(engine: Engine, folder: Path) -> Checkpointer:
    world, options = engine.world, CheckpointSection(asynchronous=False, on_error="stop")
    return Checkpointer(folder, world.rank, world.layout.world_size, options, world.control_group)


def _train(engine: Engine, first: int, steps: int) -> list[float]:
    return [
        engine.step(microbatches(engine.config, engine.world, step)).loss
        for step in range(first, first + steps)
    ]


def microbatches(config: Config, world: World, step: int) -> list[Batch]:
    """This replica's part of a global batch that is the same under every layout: tokens in arithmetic
    progressions, so that there is something to learn."""
    generator = torch.Generator().manual_seed(step)
    starts, strides = torch.randint(VOCABULARY, (2, GLOBAL_BATCH, 1), generator=generator)
    tokens = (starts + strides % 5 * torch.arange(LENGTH + 1)) % VOCABULARY
    own = tokens[world.coordinates.data :: world.layout.data]
    return [
        Batch(
            rows[:, :-1].contiguous(),
            rows[:, 1:].contiguous(),
            torch.ones(len(rows), LENGTH, dtype=torch.float32),
            torch.arange(LENGTH).expand(len(rows), -1),
        )
        for rows in own.split(config.train.micro_batch_size)
    ]


def in_layout(config: Config, work: Callable[[Engine], Result]) -> Result:
    """What `work` makes of an engine under the config's layout; afterwards nothing of both is left."""
    world = World(Layout.of(config.parallel, config.world_size), torch.device("cpu"))
    engine = Engine(config, world, VOCABULARY, CausalLM())
    result = work(engine)
    # Not where a rank has failed: the others would wait for it here instead of hearing of it.
    engine.close()
    world.close()
    del engine
    gc.collect()
    return result
