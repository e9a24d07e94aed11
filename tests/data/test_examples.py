"""Examples on disk, and as rows: each once, with its own positions, labels and loss."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmscale.data.example_rows import ExampleRows
from llmscale.data.examples import Example, ExampleSet, write_examples

drawn = st.lists(st.lists(st.booleans(), min_size=2, max_size=12), min_size=1, max_size=20)
many = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)


def made(learned: list[list[bool]]) -> list[Example]:
    """Tokens are all different, so that each can be told from any other."""
    starts = np.cumsum([0, *map(len, learned)])
    return [
        Example(np.arange(start + 1, start + 1 + len(mask), dtype=np.int32), np.array(mask))
        for start, mask in zip(starts, learned)
    ]


def write(folder: Path, examples: list[Example]) -> ExampleSet:
    place = folder / f"{len(list(folder.iterdir()))}"
    write_examples(examples, place, {"made": "here"})
    return ExampleSet(place)


@many
@given(learned=drawn)
def test_what_is_written_is_read(learned: list[list[bool]], tmp_path: Path):
    examples = made(learned)
    found = write(tmp_path, examples)
    assert found.info == {"made": "here", "content": found.content} and found.lengths.tolist() == list(
        map(len, learned)
    )
    for place, example in enumerate(examples):
        assert found[place].tokens.tolist() == example.tokens.tolist()
        assert found[place].learned.tolist() == example.learned.tolist() and found[place].target is None


@many
@given(learned=drawn, virtual=st.integers(0, 3), packing=st.booleans())
def test_an_epoch_holds_each_example_once(
    learned: list[list[bool]], virtual: int, packing: bool, tmp_path: Path
):
    examples = made(learned)
    rows = ExampleRows(write(tmp_path, examples), 16, "seed", virtual, packing)
    by_first = {int(example.tokens[0]): example for example in examples}
    seen = []
    for number in range(rows.samples_per_epoch):
        row = rows.sample(1, number)
        assert len(row.tokens_S) == 16 and packing == (row.document_lengths is not None)
        lengths = row.document_lengths or (16 - row.padding, *([row.padding] if row.padding else []))
        assert sum(lengths) == 16
        bounds = np.cumsum([0, *lengths])
        for start, stop in list(zip(bounds, bounds[1:]))[: -1 if row.padding else None]:
            first = int(row.tokens_S[start + virtual])
            example = by_first[first]
            seen.append(first)
            assert row.tokens_S[start : start + virtual].tolist() == [-1 - n for n in range(virtual)]
            assert row.tokens_S[start + virtual : stop].tolist() == example.tokens[:-1].tolist()
            assert row.position_ids_S[start:stop].tolist() == list(range(stop - start))
            counts = row.loss_mask_S[start:stop].bool().tolist()
            assert counts == ([False] * virtual + example.learned.tolist())[1:]
            labels = [label for label, one in zip(row.labels_S[start:stop].tolist(), counts) if one]
            shown = example.tokens if virtual else example.tokens[1:]
            mask = example.learned if virtual else example.learned[1:]
            assert labels == shown[mask].tolist()
        if row.padding:
            assert not row.loss_mask_S[-row.padding :].any()
    assert sorted(seen) == sorted(by_first)


def test_targets_and_orders(tmp_path: Path):
    examples = [Example(np.array([n, n]), np.array([False, True]), float(n)) for n in range(30)]
    found = write(tmp_path, examples)
    assert [found[n].target for n in range(30)] == list(range(30))
    orders = []
    for seed, epoch in (("a", 0), ("a", 1), ("b", 0), ("a", 0)):
        rows = ExampleRows(found, 4, seed, 0, packing=False)
        orders.append([rows.sample(epoch, n).targets[0] for n in range(30)])
    assert orders[0] == orders[3] and len({tuple(order) for order in orders}) == 3


def test_what_is_not_whole_is_refused(tmp_path: Path):
    examples = made([[True, True]])
    for file in ("tokens.bin", "learned.bin"):
        write(tmp_path, examples)
        newest = max(tmp_path.iterdir(), key=lambda folder: int(folder.name))
        (newest / file).write_bytes((newest / file).read_bytes()[:-1])
        with pytest.raises(ValueError, match=f"{file} has"):
            ExampleSet(newest)
    with pytest.raises(ValueError, match="has no example"):
        ExampleRows(write(tmp_path, []), 4, "", 0, packing=True)
    with pytest.raises(ValueError, match="an example of 3 tokens, and a row has 2"):
        ExampleRows(write(tmp_path, examples), 2, "", 2, packing=True)


def test_an_error_on_the_way_leaves_nothing(tmp_path: Path):
    def failing():
        yield made([[True]])[0]
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_examples(failing(), tmp_path / "out", {})
    assert not list(tmp_path.iterdir())
