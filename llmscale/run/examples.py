"""Examples to train on, prepared once for all ranks, and the rows that each rank reads of them."""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import JsonValue

from llmscale.checkpoint.agreement import Agreement
from llmscale.config.schema import Config
from llmscale.data.blend import Blend, ShuffledCorpus
from llmscale.data.corpus import entries_of_split, read_index, share_of_documents
from llmscale.data.example_rows import ExampleRows
from llmscale.data.examples import ExampleSet
from llmscale.data.loader import VALIDATION_SEED, BatchSource, SplitName
from llmscale.data.prepare import prepare_examples
from llmscale.data.row import RowSource
from llmscale.model.peft.table import virtual_tokens
from llmscale.parallel.world import World
from llmscale.run.forgetting import forgetting_source
from llmscale.runtime.describe import data_lines
from llmscale.runtime.events import EventLog, read_events

FOLDER = "data"
"""In the run folder."""
Refer = Callable[[ExampleSet, str], np.ndarray]
"""(examples, name of their folder) → log-probability of each document by its number. Collective."""


@dataclass(frozen=True)
class ExampleData:
    config: Config
    """With `train.steps` where `train.epochs` asked for passes over the data."""
    training: BatchSource
    validation: BatchSource | None
    forgetting: BatchSource | None


@contextlib.contextmanager
def open_examples(config: Config, world: World, refer: Refer | None = None) -> Iterator[ExampleData]:
    """Prepare what `data` names, unless a start before this one has, and read it. Collective.

    Args:
        refer: what a reference model gives to the documents of prepared examples.

    Raises:
        CheckpointError: the records cannot be used; says why.
    """
    folder = config.run_folder / FOLDER
    agreement = Agreement(world.rank, world.layout.world_size, world.control_group)
    summary = agreement.decide(None, lambda _: prepare_examples(config, folder))
    if world.rank == 0:
        _tell(config.run_folder, summary)
    blend = training_blend(config, folder, refer)
    config = _with_steps(config, blend)
    replica = (world.coordinates.data, world.layout.data)
    with contextlib.ExitStack() as opened:
        training = opened.enter_context(BatchSource(config, "train", *replica, blend))
        validation = None
        if config.train.validate_every is not None:
            rows = _rows(config, folder, "validation", refer)
            of_validation = Blend(
                rows, [entry.weight for entry in entries_of_split(config.data, "validation")]
            )
            validation = opened.enter_context(BatchSource(config, "validation", *replica, of_validation))
        forgetting = forgetting_source(config, *replica)
        if forgetting is not None:
            opened.enter_context(forgetting)
        yield ExampleData(config, training, validation, forgetting)


def _tell(run_folder: Path, summary: dict[str, JsonValue]) -> None:
    """In the rank's log at each start, and as an event where the data is new."""
    print(*data_lines(summary), sep="\n", flush=True)
    known = [event.details["parts"] for event in read_events(run_folder) if event.kind == "prepared"]
    if known[-1:] != [summary]:
        EventLog(run_folder).write("prepared", None, parts=summary)


def training_blend(config: Config, folder: Path, refer: Refer | None = None) -> Blend:
    """Examples by the weights of their entries, with the corpus that is replayed among them."""
    rows: list[RowSource] = [*_rows(config, folder, "train", refer)]
    weights = [entry.weight for entry in config.data.train]
    replay = config.data.replay
    if replay is not None:
        rows.append(_replayed(config))
        weights.append(sum(weights) * replay.share / (1 - replay.share))
    return Blend(rows, weights)


def _rows(config: Config, folder: Path, split: SplitName, refer: Refer | None) -> list[ExampleRows]:
    seed = str(config.train.seed) if split == "train" else VALIDATION_SEED
    rows: list[ExampleRows] = []
    for place in range(len(entries_of_split(config.data, split))):
        examples = ExampleSet(folder / f"{split}-{place}")
        rows.append(
            ExampleRows(
                examples,
                config.train.sequence_length,
                f"{seed}/{split}/{place}",
                virtual_tokens(config.peft),
                packing=config.packing,
                references=None if refer is None else refer(examples, f"{split}-{place}"),
            )
        )
    return rows


def _replayed(config: Config) -> ShuffledCorpus:
    """Of the corpus what `data.split` has for training, so that the rest can tell what is forgotten."""
    assert config.data.replay is not None
    path = config.data.replay.corpus.path
    documents = share_of_documents(len(read_index(path).lengths), config.data.split, "train")
    return ShuffledCorpus(path, documents, config.train.sequence_length, f"{config.train.seed}/replay")


def _with_steps(config: Config, blend: Blend) -> Config:
    if config.train.epochs is None:
        return config
    rows = sum(source.samples_per_epoch for source in blend.corpora if isinstance(source, ExampleRows))
    steps = max(1, math.ceil(config.train.epochs * rows / config.train.global_batch_size))
    return config.model_copy(update={"train": config.train.model_copy(update={"steps": steps})})
