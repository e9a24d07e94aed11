"""Contender: llmscale's engine, with the loader that a run of `task: dpo` has."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from bench.dpo_workload import PreferenceWorkload, read_pairs
from bench.tuning import config_of
from llmscale.config.schema import Config
from llmscale.data.batch import Batch
from llmscale.data.blend import Blend
from llmscale.data.example_rows import ExampleRows
from llmscale.data.examples import ExampleSet, write_examples
from llmscale.data.loader import BatchSource
from llmscale.data.row import LENGTH_UNIT, batch_of, shortened
from llmscale.engine.engine import Engine
from llmscale.engine.reference import HeldReference
from llmscale.model.build import build_model
from llmscale.objectives.pairs import group_count
from llmscale.objectives.table import objective_of
from llmscale.parallel.distributed import connect, disconnect
from llmscale.parallel.environment import RankEnvironment
from llmscale.parallel.layout import Layout
from llmscale.parallel.world import World
from tests.preference_pairs import group_of_pair


def main() -> None:
    workload = PreferenceWorkload.from_command_line()
    torch.set_num_threads(workload.threads)
    with tempfile.TemporaryDirectory() as folder:
        examples = Path(folder) / "examples"
        write_examples(map(group_of_pair, read_pairs(workload)), examples, {})
        measure(workload, ExampleSet(examples))


def measure(workload: PreferenceWorkload, examples: ExampleSet) -> None:
    rows = ExampleRows(examples, workload.sequence_length, "1", 0, packing=True)
    # As many pairs a step as the other contender has.
    rows_a_step = max(1, round(workload.sequences * len(rows.rows) / len(examples)))
    dpo = {"loss": "sigmoid", "reference": workload.reference}
    config = config_of(workload, rows_a_step, task="dpo", dpo=dpo)
    environment = RankEnvironment.from_variables()
    world = World(Layout.of(config.parallel, environment.world_size), connect(environment))
    engine = Engine(config, world, workload.vocabulary_size, objective_of(config))
    held = start_of(config, world, workload.vocabulary_size)
    if workload.reference == "held":
        engine.reference = held
    else:
        rows.references = log_probabilities(held, world, rows)
    clock = workload.clock
    with BatchSource(config, "train", 0, 1, Blend([rows], [1.0])) as source:
        consumed, done = 0, False
        while not done:
            batches = source.step_batches(consumed, rows_a_step)
            result = engine.step(batches)
            consumed += rows_a_step
            done = clock.step(result.loss, {"tokens": result.tokens, **counts_of(batches)})
    clock.report()
    disconnect()


def start_of(config: Config, world: World, vocabulary_size: int) -> HeldReference:
    """The model that the engine starts from: its weights depend on the seed only."""
    with world.active():
        return HeldReference(build_model(config.model, config.train, vocabulary_size, world), world)


def log_probabilities(held: HeldReference, world: World, rows: ExampleRows) -> np.ndarray:
    """What the start gives to each document, by its number."""
    found = np.zeros(rows.examples.document_count)
    for places in rows.rows:
        with world.active():
            [told] = held.told([batch_of(shortened([rows.row(places)], LENGTH_UNIT))])
        assert told.document_BL is not None and told.reference_BL is not None
        found[told.document_BL.numpy()] = told.reference_BL.numpy()
    return found


def counts_of(batches: Sequence[Batch]) -> dict[str, int]:
    return {
        "pairs": sum(group_count(batch) for batch in batches),
        "computed": sum(batch.tokens_BS.numel() for batch in batches),
    }


if __name__ == "__main__":
    main()
