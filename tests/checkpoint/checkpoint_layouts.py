"""Random layouts of named tensors: every tensor cut into boxes, the boxes dealt out to ranks."""

import random
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from llmscale.model.regions import Box, Piece

Tensors = Mapping[str, Tensor]

SHAPES: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
    "model.embed_tokens.weight": ((37, 16), torch.float32),
    "model.layers.0.mlp.down_proj.weight": ((16, 44), torch.float32),
    "model.layers.0.mlp.experts.weight": ((3, 5, 7), torch.bfloat16),
    "model.norm.weight": ((16,), torch.float32),
    "optimizer.exp_avg.model.norm.weight": ((16,), torch.float64),
    "optimizer.step": ((), torch.int64),
    "empty": ((0, 4), torch.float32),
}


def make_tensors(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randint(-(1 << 20), 1 << 20, shape, generator=generator).to(dtype)
        for name, (shape, dtype) in SHAPES.items()
    }


def split_box(box: Box, cuts: int, choose: random.Random) -> list[Box]:
    """Cut a box `cuts` times at random."""
    boxes = [box]
    for _ in range(cuts):
        victim = boxes.pop(choose.randrange(len(boxes)))
        axes = [axis for axis, size in enumerate(victim.size) if size > 1]
        if not axes:
            boxes.append(victim)
            continue
        axis = choose.choice(axes)
        at = choose.randrange(1, victim.size[axis])
        for start, size in ((0, at), (at, victim.size[axis] - at)):
            boxes.append(
                Box(
                    (*victim.start[:axis], victim.start[axis] + start, *victim.start[axis + 1 :]),
                    (*victim.size[:axis], size, *victim.size[axis + 1 :]),
                )
            )
    return boxes


@dataclass(frozen=True)
class RankedPieces:
    """Pieces of each rank, over memory of their own."""

    ranks: list[list[Piece]]

    def whole(self) -> dict[str, Tensor]:
        """Put the tensors together again."""
        tensors: dict[str, Tensor] = {}
        for piece in (piece for pieces in self.ranks for piece in pieces):
            whole = tensors.setdefault(piece.name, torch.zeros(piece.shape, dtype=piece.data.dtype))
            whole[piece.box.slices] = piece.data
        return tensors


def deal(
    tensors: Tensors, ranks: int, seed: int, replicas: bool = False, blank: bool = False
) -> RankedPieces:
    """Cut each tensor at random and deal its boxes out; with `replicas`, some boxes go to two ranks.

    Some pieces' memory is not contiguous. With `blank`, the memory holds zeros.
    """
    choose = random.Random(seed)
    dealt: list[list[Piece]] = [[] for _ in range(ranks)]
    for name, tensor in tensors.items():
        if tensor.numel() == 0:
            continue
        for box in split_box(Box((0,) * tensor.dim(), tuple(tensor.shape)), choose.randrange(5), choose):
            owners = choose.sample(range(ranks), 2 if replicas and ranks > 1 and choose.random() < 0.3 else 1)
            for owner in owners:
                data = torch.zeros_like(tensor[box.slices]) if blank else tensor[box.slices].clone()
                if data.dim() == 2 and choose.random() < 0.5:
                    data = data.T.contiguous().T
                dealt[owner].append(Piece(name, tuple(tensor.shape), box.start, data))
    return RankedPieces(dealt)
