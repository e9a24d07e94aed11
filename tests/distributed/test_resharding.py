"""What one layout has saved, every other one loads: the same bytes, the same losses."""

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from llmscale.engine import state
from llmscale.engine.engine import Engine
from llmscale.model import parameters
from llmscale.model.regions import Piece
from tests.distributed.resharding import Kind, read, write

NEXT_LOSS = {"fp32": 1e-6, "fp64": 1e-12, "bf16": 2e-3}
FURTHER_LOSS = {"fp32": 5e-6, "fp64": 1e-11, "bf16": 2e-2}
"""Relative, over the steps after the load."""
FURTHER_STEPS = 200


def ring(layouts: list[str]) -> list[tuple[str, str]]:
    """Each layout once as a writer and once as a reader."""
    return [(name, layouts[(place + 1) % len(layouts)]) for place, name in enumerate(layouts)]


FEW = ["1 rank", "PP4", "DP2 ZeRO-2", "TP2×PP2", "PP2 interleaved", "TP2"]
CYCLES = {
    "untied": (Kind(), ring(Kind().layouts())),
    "tied": (Kind(tied=True), ring(FEW)),
    "untied, fp64": (Kind(precision="fp64"), ring(FEW)),
    # One rank keeps no partitions in full precision, and does in bf16.
    "untied, bf16": (Kind(precision="bf16"), [*ring(FEW[:2]), *ring(["TP2×PP2", "DP2 ZeRO-3"])]),
}
LONG = [("TP2", "1 rank"), ("1 rank", "DP2 ZeRO-2")]


def check(folder: Path, kind: Kind, pairs: list[tuple[str, str]], **options: Any) -> None:
    further = options.pop("further", {})
    layouts = dict.fromkeys(writer for writer, _ in pairs)
    longest = {name: max(further.get(pair, 1) for pair in pairs if pair[0] == name) for name in layouts}
    written = write(kind, layouts, folder, longest)
    for outcome in read(kind, written, pairs, folder / "read", further, **options):
        outcome.check(NEXT_LOSS[kind.precision], FURTHER_LOSS[kind.precision])


@pytest.mark.parametrize("cycle", CYCLES)
def test_each_layout_writes_and_reads(tmp_path: Path, cycle: str) -> None:
    check(tmp_path, *CYCLES[cycle])


def test_two_hundred_further_steps(tmp_path: Path) -> None:
    check(tmp_path, Kind(), LONG, further=dict.fromkeys(LONG, FURTHER_STEPS))


@pytest.mark.soak
@pytest.mark.parametrize("precision", ["fp32", "fp64", "bf16"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_every_ordered_pair(tmp_path: Path, tied: bool, precision: str) -> None:
    """Hashes and next loss of all pairs; in float32 200 further steps of each."""
    kind = Kind(tied, precision)
    pairs = [(a, b) for a in kind.layouts() for b in kind.layouts() if a != b]
    further = dict.fromkeys(pairs, FURTHER_STEPS) if precision == "fp32" else {}
    check(tmp_path, kind, pairs, further=further, timeout_seconds=4 * 3600)


parts_as_they_are = parameters._parts
save_as_it_is = Engine.pieces_to_save
moments_as_they_are = state._moments


def swapped_parts(chunk: Any, local_name: str, rows: int) -> list[Any]:
    """The declaration takes keys for values."""
    parts = parts_as_they_are(chunk, local_name, rows)
    return [parts[0], parts[2], parts[1]] if "linear_qkv" in local_name else parts


def swapped_boxes(engine: Engine) -> list[Piece]:
    """Rows of weights and moments trade places on the way out."""
    pieces = save_as_it_is(engine)
    for piece in pieces:  # the second tensor rank has padding only
        if piece.name.endswith("embed_tokens.weight"):
            piece.data.copy_(piece.data.flip(0).clone())
    return pieces


def swapped_moments(engine: Any, updated: Tensor, offset: int, length: int) -> dict[str, Tensor]:
    """Each moment is taken for the other, in loading and in saving."""
    moments = moments_as_they_are(engine, updated, offset, length)
    return dict(zip(moments, reversed(moments.values())))


MISTAKES = {
    "keys for values": ("llmscale.model.parameters._parts", swapped_parts, "next loss"),
    "rows in another order on the way out": (
        "llmscale.engine.engine.Engine.pieces_to_save",
        swapped_boxes,
        "stored tensors differ",
    ),
    "one moment for the other": ("llmscale.engine.state._moments", swapped_moments, "further losses"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_planted_mistake_is_found(tmp_path: Path, mistake: str) -> None:
    name, replacement, found_in = MISTAKES[mistake]
    pair = ("DP2 ZeRO-1", "TP2")
    with pytest.raises(AssertionError, match=found_in):
        check(tmp_path, Kind(), [pair], further={pair: 5}, patches={name: replacement})
