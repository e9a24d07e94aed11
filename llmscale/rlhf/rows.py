"""Experiences as microbatches, and what a model says of their tokens back in their order.

An answer is a document: several share a row and do not see each other, but what they have in common before
them is there once (`llmscale.rlhf.families`). What is known of a token stands in a row where the label stands
that it is of, one place before.

Shapes: T tokens of an experience, B rows, S tokens of a row.
"""

import math
from collections.abc import Callable, Iterator, Sequence
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
from llmscale.rlhf.families import Family, families

Known = Callable[[Experience], np.ndarray]
"""[T] of an experience."""


@dataclass(frozen=True)
class Piece:
    """A document of a row: labels of an experience."""

    experience: int
    first: int
    """The first of them, counted from that of the experience, virtual tokens before it included."""
    end: int

    @property
    def length(self) -> int:
        return self.end - self.first


@dataclass(frozen=True)
class Place:
    """Where an experience lies: in one piece, or in what it shares with others and what is its own."""

    microbatch: int
    row: int
    parts: tuple[slice, ...]


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
            row_S = told[place.microbatch][place.row]
            values = torch.cat([row_S[part] for part in place.parts]).float().cpu().numpy()
            known = values[len(values) - (len(experience.tokens_T) - 1) :]
            found.append(np.concatenate(([0.0], known)).astype(np.float32))
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
    together = families(experiences, row_length, virtual_tokens)
    lengths = [family.length for family in together]
    # Rows of one length share a microbatch: little of it is padding.
    members = sorted(packed(lengths, row_length), key=lambda row: -sum(lengths[place] for place in row))
    members += [[]] * (_rows_of_a_replica(len(members), micro_batch_size, world) - len(members))
    pieces = [
        [piece for place in row for piece in _pieces(together[place], experiences, virtual_tokens)]
        for row in members
    ]
    rows = [_row(row, experiences, row_length, virtual_tokens) for row in pieces]
    unit = math.lcm(LENGTH_UNIT, world.layout.tensor)
    # The schedule of a pipeline needs all microbatches to be of one length.
    size = len(rows) if world.layout.pipeline > 1 else micro_batch_size
    rows = [row for start in range(0, len(rows), size) for row in shortened(rows[start : start + size], unit)]
    batches = [
        batch_of(rows[start : start + micro_batch_size]) for start in range(0, len(rows), micro_batch_size)
    ]
    places = {
        number: Place(*divmod(row, micro_batch_size), parts)
        for row, row_pieces in enumerate(pieces)
        for number, parts in _parts(row_pieces)
    }
    return Packed(batches, [places[number] for number in range(len(experiences))], experiences)


def _pieces(family: Family, experiences: Sequence[Experience], virtual_tokens: int) -> list[Piece]:
    """What the family shares, then what each has of its own."""
    shared = [Piece(family.members[0], 0, family.shared)] if family.shared else []
    ends = {number: len(experiences[number].tokens_T) - 1 + virtual_tokens for number in family.members}
    return shared + [Piece(number, family.shared, end) for number, end in ends.items()]


def _parts(pieces: Sequence[Piece]) -> Iterator[tuple[int, tuple[slice, ...]]]:
    """Of every experience of a row, where its labels are."""
    shared, start = slice(0), 0
    for piece, following in zip(pieces, [*pieces[1:], None]):
        place = slice(start, start + piece.length)
        start = place.stop
        if following is not None and following.experience == piece.experience:
            shared = place
        else:
            yield piece.experience, (shared, place) if piece.first else (place,)


def _rows_of_a_replica(rows: int, micro_batch_size: int, world: World) -> int:
    """So many that every replica has as many microbatches, and a pipeline as many as it needs."""
    most = torch.tensor([max(rows, 1)])
    if world.control_group is not None:
        torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX, group=world.control_group)
    stages = world.layout.pipeline if world.layout.interleave > 1 else 1
    return micro_batch_size * stages * math.ceil(int(most) / (micro_batch_size * stages))


def _row(
    pieces: Sequence[Piece], experiences: Sequence[Experience], row_length: int, virtual_tokens: int
) -> Row:
    """The pieces in one row, padded at the end."""
    if not pieces:
        return empty_row(row_length)
    before = -1 - np.arange(virtual_tokens)
    padding = row_length - sum(piece.length for piece in pieces)
    names = sorted({name for piece in pieces for name in experiences[piece.experience].signals})

    def laid_out(known: Known, of_virtual: np.ndarray, shift: int, dtype: torch.dtype) -> Tensor:
        """`known` of each piece's tokens (`shift` 0) or of its labels (1)."""
        parts: list[np.ndarray] = []
        for piece in pieces:
            whole = np.concatenate((of_virtual, known(experiences[piece.experience])))
            parts.append(whole[piece.first + shift : piece.end + shift])
        return torch.from_numpy(np.concatenate([*parts, np.zeros(padding)])).to(dtype)

    def signal(name: str) -> Tensor:
        def known(experience: Experience) -> np.ndarray:
            return experience.signals.get(name, np.zeros(len(experience.tokens_T)))

        return laid_out(known, np.zeros(virtual_tokens), 1, torch.float32)

    positions = [torch.arange(piece.first, piece.end) for piece in pieces]
    return Row(
        tokens_S=laid_out(lambda one: one.tokens_T, before, 0, torch.int64),
        labels_S=laid_out(lambda one: one.tokens_T, before, 1, torch.int64).clamp_min(0),
        loss_mask_S=laid_out(lambda one: one.learned_T, np.zeros(virtual_tokens), 1, torch.float32),
        position_ids_S=torch.cat([*positions, torch.arange(padding)]),
        document_lengths=(*(piece.length for piece in pieces), *([padding] if padding else [])),
        document_before=(*(piece.first for piece in pieces), *([0] if padding else [])),
        padding=padding,
        signals={name: signal(name) for name in names},
    )
