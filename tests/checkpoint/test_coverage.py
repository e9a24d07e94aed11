"""Coverage by volume against counting every element."""

import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from llmscale.checkpoint.coverage import coverage
from llmscale.model.regions import Box
from tests.checkpoint.checkpoint_layouts import split_box

SHAPES = st.lists(st.integers(1, 6), min_size=0, max_size=3).map(tuple)


@given(SHAPES, st.integers(0, 12), st.integers(0, 1 << 30))
def test_a_partition_has_no_faults(shape: tuple[int, ...], cuts: int, seed: int) -> None:
    boxes = split_box(Box((0,) * len(shape), shape), cuts, random.Random(seed))
    found = coverage(shape, boxes)
    assert found.gaps == () and found.overlaps == ()


@given(SHAPES, st.data())
def test_gaps_and_overlaps_are_those_that_counting_finds(shape: tuple[int, ...], data: st.DataObject) -> None:
    boxes = []
    for _ in range(data.draw(st.integers(0, 6))):
        ends = [sorted(data.draw(st.tuples(*[st.integers(0, size)] * 2))) for size in shape]
        boxes.append(Box(tuple(a for a, _ in ends), tuple(b - a for a, b in ends)))
    count = np.zeros(shape, dtype=int)
    for box in boxes:
        count[box.slices] += 1
    found = coverage(shape, boxes)
    missing = np.zeros(shape, dtype=int)
    for gap in found.gaps:
        missing[gap.slices] += 1
    assert (missing == (count == 0)).all()
    assert bool(found.overlaps) == bool((count > 1).any())
