"""Flat ranges of row-major tensors as boxes, against numpy's own idea of them."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmscale.model.regions import Box, Region, flat_range_boxes, pieces_of_range

SHAPES = st.lists(st.integers(1, 6), min_size=0, max_size=4).map(tuple)


def numbered(shape: tuple[int, ...]) -> np.ndarray:
    return np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape)


def cut_points(data: st.DataObject, total: int, ranks: int) -> list[int]:
    cuts = sorted(data.draw(st.lists(st.integers(0, total), min_size=ranks - 1, max_size=ranks - 1)))
    return [0, *cuts, total]


@given(SHAPES, st.data())
def test_boxes_hold_the_flat_range_in_order(shape: tuple[int, ...], data: st.DataObject) -> None:
    whole = numbered(shape)
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, whole.size)] * 2)))
    boxes = list(flat_range_boxes(shape, start, stop))
    found = [whole[box.slices].reshape(-1) for _, box in boxes]
    assert np.concatenate([*found, []]).tolist() == list(range(start, stop))
    assert all(part[0] == first for (first, _), part in zip(boxes, found))
    assert len(boxes) <= max(1, 2 * len(shape) - 1)


@given(SHAPES, st.data())
def test_intersection_is_the_set_of_common_elements(shape: tuple[int, ...], data: st.DataObject) -> None:
    whole = numbered(shape)

    def some_box() -> Box:
        ends = [sorted(data.draw(st.tuples(*[st.integers(0, size)] * 2))) for size in shape]
        return Box(tuple(a for a, _ in ends), tuple(b - a for a, b in ends))

    first, second = some_box(), some_box()
    common = first.intersection(second)
    expected = set(whole[first.slices].flat) & set(whole[second.slices].flat)
    assert (set(whole[common.slices].flat) if common else set()) == expected


@st.composite
def sharded_matrices(draw: st.DrawFn) -> tuple[tuple[int, int], list[tuple[tuple[int, int], list[Region]]]]:
    """A matrix in Hugging Face's order and, for each tensor-parallel rank, its local shape and region.

    Split over rows or columns, padded at the end to divide evenly, stored the same way round or transposed.
    """
    rows, columns, ranks = draw(st.integers(1, 9)), draw(st.integers(1, 7)), draw(st.integers(1, 3))
    split, transpose = draw(st.integers(0, 1)), draw(st.booleans())
    shape = (rows, columns)
    width = -(-shape[split] // ranks)
    locals_ = []
    for rank in range(ranks):
        held = max(0, min(width, shape[split] - rank * width))
        local_shape = (width, columns) if split == 0 else (rows, width)
        size = (held, columns) if split == 0 else (rows, held)
        start = (rank * width, 0) if split == 0 else (0, rank * width)
        box = Box(start, size)
        local = Box((0, 0), size)
        if transpose:
            local_shape, local = local_shape[::-1], local.transposed()
        regions = [Region("weight", shape, local, box, transpose)] if held else []
        locals_.append((local_shape, regions))
    return shape, locals_


@given(sharded_matrices(), st.integers(1, 4), st.data())
def test_pieces_of_all_ranks_make_the_matrix_once(sharded, zero_ranks: int, data: st.DataObject) -> None:
    """ZeRO ranges of tensor-parallel shards: each true element in one piece, padding in none."""
    shape, locals_ = sharded
    whole = torch.from_numpy(numbered(shape))
    count = torch.zeros(shape, dtype=torch.int64)
    for local_shape, regions in locals_:
        local = torch.full(local_shape, -1)
        for region in regions:
            values = whole[region.box.slices]
            local[region.local.slices] = values.T if region.transpose else values
        flat = local.reshape(-1)
        ends = cut_points(data, flat.numel(), zero_ranks)
        for start, stop in zip(ends, ends[1:]):
            for piece in pieces_of_range(flat[start:stop], local_shape, start, regions, "optimizer.exp_avg."):
                assert piece.name == "optimizer.exp_avg.weight" and piece.shape == shape
                assert torch.equal(piece.data, whole[piece.box.slices])
                count[piece.box.slices] += 1
                piece.data.fill_(-2)
        assert not ((flat >= 0).any()), "the pieces must share the flat memory"
    assert torch.equal(count, torch.ones_like(count))


def test_fused_parameter_becomes_several_tensors() -> None:
    """Query, key and value rows of one local matrix, cut by a flat range in the middle of the key."""
    rows = torch.arange(24).reshape(6, 4)
    regions = [
        Region(name, (2, 4), Box((2 * index, 0), (2, 4)), Box((0, 0), (2, 4)))
        for index, name in enumerate("qkv")
    ]
    pieces = list(pieces_of_range(rows.reshape(-1)[:14], (6, 4), 0, regions))
    assert [(piece.name, piece.start, tuple(piece.data.shape)) for piece in pieces] == [
        ("q", (0, 0), (2, 4)),
        ("k", (0, 0), (1, 4)),
        ("k", (1, 0), (1, 2)),
    ]
    assert all(torch.equal(piece.data, rows[2:4][piece.box.slices]) for piece in pieces[1:])


def test_biases_of_transposed_families_stay_as_they_are() -> None:
    bias = torch.arange(5)
    region = Region("bias", (5,), Box((0,), (5,)), Box((0,), (5,)), transpose=True)
    (piece,) = pieces_of_range(bias[1:4], (5,), 1, [region])
    assert piece.start == (1,) and torch.equal(piece.data, bias[1:4])
