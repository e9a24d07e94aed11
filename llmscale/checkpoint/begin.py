"""Weights for a new run, or for a model that writes: from a checkpoint of ours or from a Hugging Face folder.

A vocabulary may have grown since. A token's new row, in embedding and output, is the mean of the old rows:
its logit is then the mean of the old tokens' logits, and the others keep their probabilities but for a
share near 1 / vocabulary. A row of zeros would have logit 0, which in a trained model, where most logits
are far below 0, may make the new token the likeliest of all; a random row is no better.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import torch
from torch import Tensor

from llmscale.checkpoint.agreement import Agreement
from llmscale.checkpoint.base import Base, newest_committed
from llmscale.checkpoint.errors import DamagedCheckpoint
from llmscale.checkpoint.huggingface_folder import is_hugging_face_folder, open_folder
from llmscale.checkpoint.loader import load_weights
from llmscale.checkpoint.merged import manifest_of, open_weights, verify_weights
from llmscale.checkpoint.store import inspect, locate
from llmscale.checkpoint.tensor_files import TensorFiles, TensorSource, verify_tensors
from llmscale.config.problems import InputError, Problem
from llmscale.model.regions import Piece


def begin_from(
    path: Path,
    pieces: Sequence[Piece],
    agreement: Agreement,
    vocabulary_tensors: Sequence[str] = (),
    without: Sequence[str] = (),
) -> None:
    """Fill pieces (weights only) from a Hugging Face folder, a checkpoint, or a run's newest sound one; what
    was trained with PEFT is merged into its base, and the run's newest one must be sound.

    Collective. Tensors in `vocabulary_tensors` may have more rows than are stored. Those in `without` are
    not taken, whether they are stored or not.

    Raises:
        InputError: another model is there. CheckpointError: nothing there, or nothing sound.
    """
    pieces = [piece for piece in pieces if piece.name not in without]
    if agreement.decide(None, lambda _: is_hugging_face_folder(path)):
        _from_folder(path, pieces, agreement, vocabulary_tensors)
        return
    merged = agreement.decide(None, lambda _: newest_on_a_base(path))
    if merged is not None:
        _from_merged(Path(merged), pieces, agreement, vocabulary_tensors)
        return
    rows = agreement.decide(None, lambda _: _stored_rows(path, vocabulary_tensors))
    old = [_old_part(piece, rows.get(piece.name)) for piece in pieces]
    stored_pieces = [piece for piece in old if piece.data.numel()]
    loaded = load_weights(path, stored_pieces, agreement, without=without)
    manifest = inspect(loaded.path).manifest
    assert manifest is not None
    grown = {piece.name for piece, stored in zip(pieces, old) if piece is not stored}
    with TensorFiles.of_checkpoint(loaded.path, manifest) as source:
        # Their mean takes rows that this rank has not loaded, so not hashed either.
        agreement.require(lambda: verify_tensors(loaded.path, manifest, grown) if grown else None)
        agreement.require(lambda: _fill_new_rows(source, pieces))


def _stored_rows(path: Path, names: Sequence[str]) -> dict[str, int]:
    """Rows of these tensors in the newest committed checkpoint."""
    for found in reversed(locate(path)):
        if found.state == "committed" and found.manifest is not None:
            tensors = found.manifest.tensors
            return {name: tensors[name].shape[0] for name in names if name in tensors}
    return {}


def _old_part(piece: Piece, rows: int | None) -> Piece:
    """The part of a piece that is stored, as a piece of the tensor that is stored."""
    if rows is None or rows >= piece.shape[0]:
        return piece
    return Piece(piece.name, (rows, *piece.shape[1:]), piece.start, piece.data[: _old_rows(piece, rows)])


def _old_rows(piece: Piece, rows: int) -> int:
    return min(max(0, rows - piece.start[0]), piece.data.shape[0])


def newest_on_a_base(path: Path) -> str | None:
    """The newest committed checkpoint, if it holds only what was trained on top of a base."""
    newest = newest_committed(path)
    if newest is None or newest.manifest is None or Base.in_description(newest.manifest.description) is None:
        return None
    return str(newest.path)


def _from_merged(
    checkpoint: Path, pieces: Sequence[Piece], agreement: Agreement, vocabulary_tensors: Sequence[str]
) -> None:
    manifest = manifest_of(checkpoint)
    agreement.require(lambda: verify_weights(checkpoint, manifest) if agreement.rank == 0 else None)
    _fill(lambda: open_weights(checkpoint, manifest), checkpoint, pieces, agreement, vocabulary_tensors)


def _from_folder(
    path: Path, pieces: Sequence[Piece], agreement: Agreement, vocabulary_tensors: Sequence[str]
) -> None:
    _fill(lambda: TensorFiles.of_folder(open_folder(path)), path, pieces, agreement, vocabulary_tensors)


def _fill(
    open_source: Callable[[], AbstractContextManager[TensorSource]],
    path: Path,
    pieces: Sequence[Piece],
    agreement: Agreement,
    vocabulary_tensors: Sequence[str],
) -> None:
    """Fill the pieces from one place, once all ranks have found that they fit."""
    with ExitStack() as opened:
        sources: list[TensorSource] = []
        found = _problems_of(lambda: sources.append(opened.enter_context(open_source())))
        found = found or [
            problem for piece in pieces for problem in _misfits(piece, sources[0], path, vocabulary_tensors)
        ]
        mine = [(problem.key, str(problem.value), problem.message) for problem in found]
        everyone = agreement.decide(mine, lambda ranks: [problem for rank in ranks for problem in rank])
        if everyone:
            raise InputError([Problem(*problem) for problem in dict.fromkeys(map(tuple, everyone))])
        agreement.require(lambda: _fill_old_rows(sources[0], pieces))
        agreement.require(lambda: _fill_new_rows(sources[0], pieces))


def _problems_of(work: Callable[[], None]) -> list[Problem]:
    try:
        work()
    except InputError as error:
        return error.problems
    return []


def _misfits(
    piece: Piece, source: TensorSource, path: Path, vocabulary_tensors: Sequence[str]
) -> Iterator[Problem]:
    tensor = source.tensors.get(piece.name)
    if tensor is None:
        yield Problem(piece.name, "missing", f"is in the model and not in {path}")
        return
    may_grow = piece.name in vocabulary_tensors and tensor.shape[0] < piece.shape[0]
    if tensor.shape != piece.shape and not (may_grow and tensor.shape[1:] == piece.shape[1:]):
        message = f"has this shape in {path} and {list(piece.shape)} in the model"
        yield Problem(piece.name, list(tensor.shape), message)


@torch.no_grad()
def _fill_old_rows(source: TensorSource, pieces: Sequence[Piece]) -> None:
    for piece in pieces:
        old = _old_part(piece, source.tensors[piece.name].shape[0])
        if not old.data.numel():
            continue
        for box, slab in source.slabs(piece.name, old.box):
            if not slab.isfinite().all():
                raise DamagedCheckpoint(f"{piece.name} has a value that is not finite")
            old.data[box.shifted(tuple(-start for start in piece.start)).slices].copy_(slab)


@torch.no_grad()
def _fill_new_rows(source: TensorSource, pieces: Sequence[Piece]) -> None:
    means: dict[str, Tensor] = {}
    for piece in pieces:
        old = _old_rows(piece, source.tensors[piece.name].shape[0])
        if old == piece.data.shape[0]:
            continue
        if piece.name not in means:
            means[piece.name] = source.mean_row(piece.name)
        piece.data[old:].copy_(means[piece.name][piece.box.slices[1]])
