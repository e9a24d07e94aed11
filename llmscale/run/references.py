"""What the model that a run started from gives to the answers of its data, computed once and kept on disk.

One file for the examples of each entry of the data, named by all that the numbers depend on. It is written
again and again while they are computed, so that a run which is stopped meanwhile goes on where it was; a file
that is damaged (zip has a checksum) is computed anew.
"""

import hashlib
import json
import math
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed

from llmscale.checkpoint.agreement import Agreement
from llmscale.checkpoint.base import Base
from llmscale.config.problems import InputError, Problem
from llmscale.config.schema import Config
from llmscale.data.batch import Batch
from llmscale.data.checks import resolved_vocabulary_size
from llmscale.data.example_rows import ExampleRows
from llmscale.data.examples import ExampleSet
from llmscale.data.files import replace_file
from llmscale.data.row import LENGTH_UNIT, batch_of, empty_row, shortened
from llmscale.engine.reference import HeldReference
from llmscale.model.build import build_chunks
from llmscale.parallel.world import World
from llmscale.run.prepare_model import fill_base
from llmscale.runtime.events import EventLog
from llmscale.runtime.preempt import StopAsked, agreed

VERSION = 1
SAVE_SECONDS = 30.0
MICROBATCHES = 4
"""Of each stage of a replica, between two looks at whether the run is to stop."""


def held_reference(config: Config, world: World, start: Base, rests: bool = True) -> HeldReference:
    """The model that the run started from. Collective."""
    with world.active():
        chunks = build_chunks(config.model, config.train, resolved_vocabulary_size(config), world)
        fill_base(chunks, start, config, Agreement(world.rank, world.layout.world_size, world.control_group))
    return HeldReference(chunks, world, rests)


class References:
    """Log-probabilities of documents. The model is in memory from the first one that is missing to `close`.

    Args:
        config: of the run.
        start: the weights that it started from.
        folder: for the files.
    """

    def __init__(self, config: Config, world: World, start: Base, folder: Path) -> None:
        self.config = config
        self.world = world
        self.start = start
        self.folder = folder
        self._model: HeldReference | None = None

    def close(self) -> None:
        self._model = None

    def of(self, examples: ExampleSet, name: str) -> np.ndarray:
        """float64, what the start gives to the learned tokens of each document, summed, by its number.
        Collective.

        Args:
            name: of the examples, for people.

        Raises:
            InputError: a log-probability is not finite. StopAsked: a signal came; what is known is kept.
        """
        path = self.folder / f"reference-{name}-{self._key(examples)[:16]}.npz"
        known = self._stored(path, examples.document_count)
        rows = ExampleRows(examples, self.config.train.sequence_length, "", 0, self.config.packing)
        missing = [places for places in rows.rows if np.isnan(known[_documents(examples, places)]).any()]
        if missing:
            # Rows of one length share microbatches.
            missing.sort(key=lambda places: -int(examples.lengths[list(places)].sum()))
            self._compute(rows, missing, known, path, name)
        self._refuse_what_is_not_finite(known, name)
        return known

    def _key(self, examples: ExampleSet) -> str:
        depends_on = {
            "version": VERSION,
            "content": examples.content,
            "weights": self.start.identity,
            "model": self.config.model.model_dump(mode="json"),
            "precision": self.config.train.precision,
        }
        return hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()

    def _stored(self, path: Path, documents: int) -> np.ndarray:
        """NaN where nothing is known; as rank 0 reads it."""
        known = np.zeros(documents)
        if self.world.rank == 0:
            known = _read(path, documents)
        return self._sum_over_ranks(known)

    def _compute(
        self, rows: ExampleRows, missing: Sequence[Sequence[int]], known: np.ndarray, path: Path, name: str
    ) -> None:
        """Fill `known` in place."""
        began = saved = time.monotonic()
        self._tell(name, known, began)
        size = self._block_size
        for start in range(0, len(missing), size):
            block = missing[start : start + size]
            numbers = np.concatenate([_documents(rows.examples, places) for places in block])
            known[numbers] = self._sum_over_ranks(self._log_probabilities(rows, block, numbers))
            stop = agreed(self.world.control_group)
            is_over = stop or start + size >= len(missing)
            if self.world.rank == 0 and (is_over or time.monotonic() - saved > SAVE_SECONDS):
                saved = time.monotonic()
                with replace_file(path) as file:
                    np.savez(file, log_probabilities=known)
                self._tell(name, known, began)
            if stop:
                raise StopAsked

    @property
    def _block_size(self) -> int:
        """Rows that all replicas do between two looks at whether the run is to stop."""
        layout = self.world.layout
        return MICROBATCHES * layout.pipeline * self.config.train.micro_batch_size * layout.data

    def _log_probabilities(
        self, rows: ExampleRows, block: Sequence[Sequence[int]], numbers: np.ndarray
    ) -> np.ndarray:
        """Of the documents with these numbers those that this rank has computed; 0 of the others."""
        if self._model is None:
            self._model = held_reference(self.config, self.world, self.start)
        with self.world.active():
            told = self._model.told(list(self._batches(rows, block)))
        found = np.zeros(len(numbers))
        # Of the tensor ranks and stages of a replica, which all have the same, one counts.
        if self.world.is_last_stage and self.world.coordinates.tensor == 0:
            order = np.argsort(numbers)
            for batch in told:
                if batch.document_BL is None or batch.reference_BL is None:
                    continue
                there = batch.document_BL >= 0
                places = np.searchsorted(numbers, batch.document_BL[there].cpu().numpy(), sorter=order)
                found[order[places]] = batch.reference_BL[there].cpu().numpy()
        return found

    def _batches(self, rows: ExampleRows, block: Sequence[Sequence[int]]) -> Iterator[Batch]:
        """This replica's share of the block; every replica has as many microbatches, all of one length."""
        layout, size = self.world.layout, self.config.train.micro_batch_size
        share = size * layout.pipeline * math.ceil(len(block) / (size * layout.pipeline * layout.data))
        mine = [rows.row(places) for places in block[self.world.coordinates.data :: layout.data]]
        nothing = [empty_row(rows.row_length)] * (share - len(mine))
        whole = shortened([*mine, *nothing], math.lcm(LENGTH_UNIT, layout.tensor))
        for start in range(0, share, size):
            yield batch_of(whole[start : start + size]).to(self.world.device)

    def _sum_over_ranks(self, values: np.ndarray) -> np.ndarray:
        total = torch.from_numpy(values)
        if self.world.control_group is not None:
            torch.distributed.all_reduce(total, group=self.world.control_group)
        return total.numpy()

    def _tell(self, name: str, known: np.ndarray, began: float) -> None:
        if self.world.rank == 0:
            EventLog(self.config.run_folder).write(
                "referred",
                data=name,
                answers=len(known),
                known=int((~np.isnan(known)).sum()),
                seconds=time.monotonic() - began,
            )

    def _refuse_what_is_not_finite(self, known: np.ndarray, name: str) -> None:
        wrong = int((~np.isfinite(known)).sum())
        if wrong:
            message = (
                f"gives {wrong:,} of the {len(known):,} answers of {name} a log-probability that is not "
                "finite, and nothing can be measured against that; look at its weights (`llmscale checkpoint "
                "verify`), or take a wider train.precision"
            )
            raise InputError([Problem("train.init_from", self.start.path, message)])


def _documents(examples: ExampleSet, places: Sequence[int]) -> list[int]:
    return [number for place in places for number in examples.document_numbers(place)]


def _read(path: Path, documents: int) -> np.ndarray:
    unknown = np.full(documents, math.nan)
    try:
        with np.load(path) as stored:
            known = stored["log_probabilities"]
    except FileNotFoundError:
        return unknown
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        print(f"{path} is damaged ({error}); its log-probabilities are computed anew", flush=True)
        return unknown
    return known if known.shape == unknown.shape and known.dtype == unknown.dtype else unknown
