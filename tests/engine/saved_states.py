"""What ranks of a layout hold, save and load: the part of the state tests that runs in ranks."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmscale.checkpoint.checkpointer import Checkpointer
from llmscale.checkpoint.coverage import coverage
from llmscale.config.schema import CheckpointSection, Config
from llmscale.data.batch import Batch
from llmscale.engine.engine import Engine, StepResult
from llmscale.model.language_model import LanguageModel
from llmscale.model.regions import Piece
from llmscale.objectives.causal_lm import CausalLM
from llmscale.parallel.layout import Layout
from llmscale.parallel.world import World

VOCABULARY = 501
"""Odd: padded under every tensor size."""
LENGTH = 24

LLAMA: dict[str, Any] = {"family": "llama", "kv_heads": 4}
MODELS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "llama, tied": {**LLAMA, "tie_embeddings": True},
    "qwen3": {**LLAMA, "family": "qwen3", "head_size": 24},
    "mistral": {**LLAMA, "family": "mistral", "sliding_window": 7},
    "gpt2, tied": {"family": "gpt2"},
    "gpt2": {"family": "gpt2", "tie_embeddings": False},
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "one rank": {},
    "tensor 2": {"tensor": 2},
    "tensor 4, sequence": {"tensor": 4, "sequence": True},
    "pipeline 2": {"pipeline": 2},
    "pipeline 2, interleaved": {"pipeline": 2, "interleave": 2},
    "tensor 2 x pipeline 2": {"tensor": 2, "pipeline": 2},
    "pipeline 2 x data 2": {"pipeline": 2, "data": 2},
    "data 2, ZeRO-1": {"data": 2},
    "data 4, ZeRO-2": {"data": 4, "zero": 2},
    "data 2, ZeRO-3": {"data": 2, "zero": 3},
    "tensor 2 x data 2, ZeRO-3": {"tensor": 2, "data": 2, "zero": 3},
    "tensor 2 x data 2, ZeRO-2": {"tensor": 2, "data": 2, "zero": 2},
}


def state_config(
    layout: str, model: str = "llama", precision: str = "fp32", seed: int = 1, **train: Any
) -> Config:
    parallel = dict(LAYOUTS[layout])
    data, zero = parallel.pop("data", 1), parallel.pop("zero", 1)
    ranks = parallel.get("tensor", 1) * parallel.get("pipeline", 1) * data
    sizes = {"hidden_size": 64, "layers": 4, "heads": 8, "ffn_size": 96, "vocabulary_size": VOCABULARY}
    return Config.model_validate(
        {
            "model": sizes | MODELS[model],
            "train": {"global_batch_size": 4, "sequence_length": LENGTH, "precision": precision, "seed": seed}
            | train,
            "optimizer": {"lr": 1e-3},
            "parallel": parallel,
            "zero": {"stage": zero},
            "cluster": {"processes_per_node": ranks},
        }
    )


def make_engine(config: Config, objective: CausalLM | None = None) -> Engine:
    world = World(Layout.of(config.parallel, config.world_size), torch.device("cpu"))
    return Engine(config, world, VOCABULARY, objective or CausalLM())


def batches(config: Config, world: World, step: int) -> list[Batch]:
    """This replica's microbatches of a global batch that every layout agrees on."""
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(VOCABULARY, (config.train.global_batch_size, LENGTH + 1), generator=generator)
    rows = tokens[world.coordinates.data :: world.layout.data]
    positions = torch.arange(LENGTH)[None]
    return [
        Batch(row[None, :-1], row[None, 1:], torch.ones(1, LENGTH, dtype=torch.float32), positions)
        for row in rows
    ]


def copies(pieces: Iterable[Piece]) -> list[Piece]:
    return [Piece(piece.name, piece.shape, piece.start, piece.data.detach().clone()) for piece in pieces]


def pieces_of_configs(_rank: int, configs: Sequence[Config]) -> list[list[Piece]]:
    """What this rank saves of a fresh engine of each config."""
    return [_pieces_of(config) for config in configs]


def _pieces_of(config: Config) -> list[Piece]:
    engine = make_engine(config)
    pieces = copies(engine.pieces_to_save())
    # The threads of dozens of Worlds would slow each other down.
    engine.close()
    engine.world.close()
    return pieces


@dataclass
class State:
    """What one rank has at one moment."""

    pieces: list[Piece]
    replicas: list[Piece]
    """`pieces_to_load`: with the copies that another rank saves."""
    counters: dict[str, int]
    loss: float
    """Of a batch that is not trained on: what the weights that the model computes with give."""

    @classmethod
    def of(cls, engine: Engine) -> "State":
        evaluation = engine.evaluate(batches(engine.config, engine.world, 1000))
        return cls(
            copies(engine.pieces_to_save()),
            copies(engine.pieces_to_load()),
            engine.counters(),
            evaluation.loss,
        )


def checkpointer_of(engine: Engine, folder: Path) -> Checkpointer:
    world, options = engine.world, CheckpointSection(asynchronous=False, on_error="stop", keep_last=100)
    return Checkpointer(folder, world.rank, world.layout.world_size, options, world.control_group)


def save_rank(_rank: int, config: Config, folder: Path) -> State:
    """Two steps, then a save."""
    engine = make_engine(config)
    checkpointer = checkpointer_of(engine, folder)
    checkpointer.load_newest(engine.pieces_to_load())
    for step in range(2):
        engine.step(batches(config, engine.world, step))
    checkpointer.save(2, engine.pieces_to_save(), dict(engine.counters()))
    return State.of(engine)


def load_rank(_rank: int, config: Config, folder: Path) -> tuple[State, StepResult]:
    """Loaded before the first step, and the step after."""
    engine = make_engine(config)
    loaded = checkpointer_of(engine, folder).load_newest(engine.pieces_to_load())
    assert loaded is not None
    engine.after_load(loaded.progress)
    state = State.of(engine)
    return state, engine.step(batches(config, engine.world, 2))


def move_rank(_rank: int, config: Config, source: Path, target: Path) -> tuple[State, State]:
    """Loaded from `source`; then one step more and saved in `target`."""
    engine = make_engine(config)
    loaded = checkpointer_of(engine, source).load_newest(engine.pieces_to_load())
    assert loaded is not None
    engine.after_load(loaded.progress)
    before = State.of(engine)
    engine.step(batches(config, engine.world, 2))
    checkpointer = checkpointer_of(engine, target)
    checkpointer.load_newest(engine.pieces_to_load())
    checkpointer.save(3, engine.pieces_to_save(), dict(engine.counters()))
    return before, State.of(engine)


class PoisonedGradient(CausalLM):
    """Finite losses, but in step `step` the gradient of one microbatch on one rank has a NaN."""

    poison = False

    def loss_sum(self, chunk: LanguageModel, output: Tensor, batch: Batch) -> Tensor:
        if self.poison and output.requires_grad:
            self.poison = False
            output.register_hook(lambda gradient: gradient * float("nan"))
        return super().loss_sum(chunk, output, batch)


def poisoned_rank(rank: int, config: Config) -> tuple[list[StepResult], State, State, State]:
    """Three steps, with the second one's gradient poisoned on the last rank; the states after each."""
    objective = PoisonedGradient()
    engine = make_engine(config, objective)
    results, states = [], []
    for step in range(3):
        objective.poison = step == 1 and rank == config.world_size - 1
        results.append(engine.step(batches(config, engine.world, step)))
        states.append(State.of(engine))
    return results, *states


def whole(ranks: Iterable[Sequence[Piece]], once: bool = True) -> dict[str, Tensor]:
    """Logical tensors from all ranks' pieces; with `once`, no element may stand in two of them.

    Raises:
        AssertionError: an element is missing, stands twice, or replicas differ.
    """
    by_name: dict[str, list[Piece]] = {}
    for piece in (piece for pieces in ranks for piece in pieces):
        by_name.setdefault(piece.name, []).append(piece)
    tensors: dict[str, Tensor] = {}
    for name, pieces in by_name.items():
        assert len({(piece.shape, piece.data.dtype) for piece in pieces}) == 1, name
        found = coverage(pieces[0].shape, (piece.box for piece in pieces))
        assert not found.gaps, f"{name}: {found.gaps[0]} is in no piece"
        assert not (once and found.overlaps), f"{name}: {found.overlaps[0]} is in two pieces"
        tensors[name] = torch.empty(pieces[0].shape, dtype=pieces[0].data.dtype)
        for piece in pieces:
            tensors[name][piece.box.slices] = piece.data
        assert all(torch.equal(tensors[name][p.box.slices], p.data) for p in pieces), (
            f"{name}: replicas differ"
        )
    return tensors
