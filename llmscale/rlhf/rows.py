"""Experiences as microbatches, and what a model says of their tokens back in their order.

An answer is a document: several share a row and do not see each other. What is known of a token stands in a
row where the label stands that it is of, one place before.

Shapes: T tokens of an experience, B rows, S tokens of a row.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed
from torch import Tensor

from llmscale.data.batch import Batch
from llmscale.data.pack import packed
from llmscale.data.row import LENGTH_UNIT, Row, batch_of, empty_row, shortened
from llmscale.parallel.world import World
from llmscale.rlhf.experience import Experience, Floats


@dataclass(frozen=True)
class Place:
    """Where an experience lies."""

    microbatch: int
    row: int
    start: int


@dataclass(frozen=True)
class Packed:
    """Microbatches of a replica; all replicas have as many."""

    batches: list[Batch]
    places: list[Place]
    """Of each experience."""
    experiences: Sequence[Experience]

    def of_experiences(self, told: Sequence[Tensor]) -> list[Floats]:
        """[T] of each experience, 0 at its first token, which nothing foretells.

        Args:
            told: [B, S] of each microbatch.
        """
        found: list[Floats] = []
        for place, experience in zip(self.places, self.experiences, strict=True):
            length = len(experience.tokens_T) - 1
            values = told[place.microbatch][place.row, place.start : place.start + length]
            found.append(np.concatenate(([0.0], values.float().cpu().numpy())).astype(np.float32))
        return found


def pack(
    experiences: Sequence[Experience],
    row_length: int,
    micro_batch_size: int,
    world: World,
    virtual_tokens: int = 0,
) -> Packed:
    """Microbatches of this replica's experiences. Collective over the replicas.

    Args:
        row_length: tokens of a row, at most.
        virtual_tokens: placeholders before each answer, of a model that was tuned with those.

    Raises:
        ValueError: an experience is longer than a row.
    """
    lengths = [len(one.tokens_T) - 1 + virtual_tokens for one in experiences]
    # Rows of one length share a microbatch: little of it is padding.
    members = sorted(packed(lengths, row_length), key=lambda row: -sum(lengths[place] for place in row))
    members += [[]] * (_rows_of_a_replica(len(members), micro_batch_size, world) - len(members))
    rows = [_row([experiences[place] for place in row], row_length, virtual_tokens) for row in members]
    unit = math.lcm(LENGTH_UNIT, world.layout.tensor)
    # The schedule of a pipeline needs all microbatches to be of one length.
    size = len(rows) if world.layout.pipeline > 1 else micro_batch_size
    rows = [row for start in range(0, len(rows), size) for row in shortened(rows[start : start + size], unit)]
    batches = [
        batch_of(rows[start : start + micro_batch_size]) for start in range(0, len(rows), micro_batch_size)
    ]
    places = [Place(0, 0, 0)] * len(experiences)
    for number, row in enumerate(members):
        start = 0
        for one in row:
            places[one] = Place(*divmod(number, micro_batch_size), start + virtual_tokens)
            start += lengths[one]
    return Packed(batches, places, experiences)


def _rows_of_a_replica(rows: int, micro_batch_size: int, world: World) -> int:
    """So many that every replica has as many microbatches, and a pipeline as many as it needs."""
    most = torch.tensor([max(rows, 1)])
    if world.control_group is not None:
        torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX, group=world.control_group)
    stages = world.layout.pipeline if world.layout.interleave > 1 else 1
    return micro_batch_size * stages * math.ceil(int(most) / (micro_batch_size * stages))


def _row(experiences: Sequence[Experience], row_length: int, virtual_tokens: int) -> Row:
    """The experiences in one row, padded at the end."""
    if not experiences:
        return empty_row(row_length)
    before = -1 - np.arange(virtual_tokens)
    tokens = [np.concatenate((before, one.tokens_T)).astype(np.int64) for one in experiences]
    nothing = np.zeros(virtual_tokens)
    learned = [np.concatenate((nothing, one.learned_T)) for one in experiences]
    padding = row_length - sum(len(one) - 1 for one in tokens)
    lengths = [len(one) - 1 for one in tokens] + ([padding] if padding else [])
    names = sorted({name for one in experiences for name in one.signals})

    def laid_out(parts: Sequence[np.ndarray], dtype: torch.dtype) -> Tensor:
        return torch.from_numpy(np.concatenate([*parts, np.zeros(padding)])).to(dtype)

    signals = {
        name: laid_out(
            [
                np.concatenate((nothing, one.signals.get(name, np.zeros(len(one.tokens_T)))))[1:]
                for one in experiences
            ],
            torch.float32,
        )
        for name in names
    }
    return Row(
        tokens_S=laid_out([one[:-1] for one in tokens], torch.int64),
        labels_S=laid_out([np.maximum(one[1:], 0) for one in tokens], torch.int64),
        loss_mask_S=laid_out([one[1:] for one in learned], torch.float32),
        position_ids_S=torch.cat([torch.arange(length) for length in lengths]),
        document_lengths=tuple(lengths),
        padding=padding,
        signals=signals,
    )
