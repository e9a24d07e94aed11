"""Filling a model's weights from where they are stored."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from llmscale.model.language_model import LanguageModel
from llmscale.model.parameters import ParameterDeclaration, declare_parameters
from llmscale.model.regions import Piece, pieces_of_range


@contextlib.contextmanager
def weights_to_fill(chunks: Sequence[LanguageModel], without: Sequence[str] = ()) -> Iterator[list[Piece]]:
    """Pieces that cover all weights of this rank, replicas included; what was filled in counts at the end.
    Tensors in `without` stay as they are, and are in no piece.

    The pieces are of the type that checkpoints hold: float32, or float64 for a model of that type. Rows
    that pad the vocabulary are in no piece and become 0.
    """
    masters: list[tuple[Tensor, Tensor]] = []
    pieces: list[Piece] = []
    for chunk in chunks:
        declarations = declare_parameters(chunk)
        for name, parameter in chunk.named_parameters():
            if any(stored in without for stored in declarations[name].names):
                continue
            master = torch.zeros_like(parameter, dtype=_stored_dtype(parameter), requires_grad=False)
            masters.append((parameter, master))
            pieces += _whole(master, declarations[name])
    yield pieces
    with torch.no_grad():
        for parameter, master in masters:
            parameter.copy_(master)


def _stored_dtype(parameter: Tensor) -> torch.dtype:
    return torch.float64 if parameter.dtype == torch.float64 else torch.float32


def _whole(master: Tensor, declaration: ParameterDeclaration) -> Iterator[Piece]:
    return pieces_of_range(master.view(-1), declaration.shape, 0, declaration.regions)
