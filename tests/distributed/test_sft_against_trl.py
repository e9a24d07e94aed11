"""Fine-tuning gives the losses of TRL's `SFTTrainer`: same model, data, order and hyper-parameters."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llmscale.config.schema import Config
from llmscale.data.batch import Batch
from llmscale.data.example_rows import ExampleRows
from llmscale.data.examples import ExampleSet, write_examples
from llmscale.data.row import LENGTH_UNIT, Row, batch_of, by_length, shortened
from llmscale.engine.engine import Engine
from llmscale.objectives.causal_lm import CausalLM
from llmscale.parallel.layout import Layout
from llmscale.parallel.world import World
from tests.distributed.tuning_examples import VOCABULARY, made_up_examples, sft_config
from tests.peers_sft import packed_examples, trl_trainer
from tests.peers_trl import single_threaded
from tests.ranks import run_ranks

AGREEMENT = 1e-5


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accelerate takes a process that has been a rank before, in another test, for one of many."""
    monkeypatch.delenv("LOCAL_RANK", raising=False)


def ours(
    config: Config, folder: Path, rows: Sequence[Sequence[int]]
) -> tuple[dict[str, Tensor], list[float]]:
    """The weights that the engine starts from, by Hugging Face name, and the loss of each step.

    Args:
        folder: has the examples.
        rows: the places of those that share a row.
    """
    return run_ranks(1, on_rank, config, folder, rows)[0]


def on_rank(
    _: int, config: Config, folder: Path, rows: Sequence[Sequence[int]]
) -> tuple[dict[str, Tensor], list[float]]:
    source = example_rows(config, folder)
    engine = Engine(config, World(Layout(), torch.device("cpu")), VOCABULARY, CausalLM())
    weights: dict[str, Tensor] = {}
    for piece in engine.weight_pieces():
        weights.setdefault(piece.name, torch.empty(piece.shape))[piece.box.slices] = piece.data
    steps = steps_of(config, [source.row(row) for row in rows])
    return weights, [engine.step(microbatches).loss for microbatches in steps]


def example_rows(config: Config, folder: Path) -> ExampleRows:
    return ExampleRows(ExampleSet(folder), config.train.sequence_length, "0", 0, config.sft.packing)


def steps_of(config: Config, rows: Sequence[Row]) -> Iterator[list[Batch]]:
    """The rows in their order, again from the start when they end."""
    size, micro = config.train.global_batch_size, config.train.micro_batch_size
    assert len(rows) % size == 0, "an epoch's last step would be a smaller one in TRL"
    endless = itertools.cycle(rows)
    for _ in range(config.train.steps):
        microbatches = by_length([next(endless) for _ in range(size)], micro)
        yield [batch_of(shortened(part, LENGTH_UNIT)) for part in microbatches]


def farthest(ours: Sequence[float], theirs: Sequence[float]) -> float:
    assert len(ours) == len(theirs) > 0
    return max(abs(a - b) for a, b in zip(ours, theirs))


@pytest.mark.parametrize("micro_batch_size", [8, 2])
def test_padded(tmp_path: Path, micro_batch_size: int) -> None:
    """Also with accumulation: microbatches with few learned tokens weigh no more than they should."""
    single_threaded()
    config = sft_config(packing=False, micro_batch_size=micro_batch_size)
    examples = made_up_examples(64)
    write_examples(examples, tmp_path / "examples", {})
    weights, losses = ours(config, tmp_path / "examples", [[place] for place in range(len(examples))])
    theirs = trl_trainer(config, examples, tmp_path / "trl", packing=False).losses_from(weights)
    assert losses[-1] < losses[0] - 0.1
    assert farthest(losses, theirs) <= AGREEMENT


def test_rows_that_trl_packs(tmp_path: Path) -> None:
    single_threaded()
    config = sft_config(packing=True, micro_batch_size=1)
    examples = made_up_examples(100, seed=3, longest=24)
    trainer = trl_trainer(config, examples, tmp_path / "trl", packing=True)
    last_step = len(trainer.train_dataset) % config.train.global_batch_size
    trainer.train_dataset = trainer.train_dataset.select(range(len(trainer.train_dataset) - last_step))
    packed = list(packed_examples(trainer))
    write_examples([example for row in packed for example in row], tmp_path / "examples", {})
    places = itertools.count()
    weights, losses = ours(config, tmp_path / "examples", [[next(places) for _ in row] for row in packed])
    assert max(len(row) for row in packed) > 2
    assert farthest(losses, trainer.losses_from(weights)) <= AGREEMENT


def test_our_packing_against_their_padding(tmp_path: Path) -> None:
    """All examples in each step: packed here, one a row there."""
    single_threaded()
    examples = made_up_examples(32, seed=5, longest=24)
    write_examples(examples, tmp_path / "examples", {})
    rows = example_rows(sft_config(packing=True), tmp_path / "examples").rows
    assert len(rows) < len(examples) / 2
    packed = sft_config(packing=True, global_batch_size=len(rows), micro_batch_size=1)
    padded = sft_config(packing=False, global_batch_size=len(examples), micro_batch_size=8)
    weights, losses = ours(packed, tmp_path / "examples", rows)
    theirs = trl_trainer(padded, examples, tmp_path / "trl", packing=False).losses_from(weights)
    assert farthest(losses, theirs) <= AGREEMENT
