"""What any layout has saved, any other layout loads, bit for bit; and what does not fit is refused."""

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from llmscale.checkpoint.agreement import Agreement
from llmscale.checkpoint.errors import CheckpointError
from llmscale.checkpoint.loader import load_weights
from llmscale.checkpoint.store import Store, inspect, verify
from llmscale.config.problems import InputError, Problem
from llmscale.model.regions import Piece
from tests.checkpoint.checkpoint_layouts import RankedPieces, deal, make_tensors
from tests.checkpoint.simulated_ranks import load, save

SEEDS = st.integers(0, 1 << 30)


def assert_equal(found: RankedPieces, expected: dict[str, torch.Tensor]) -> None:
    whole = found.whole()
    assert {name for name, tensor in expected.items() if tensor.numel()} == set(whole)
    for name, tensor in whole.items():
        assert (
            torch.equal(tensor.view(torch.uint8), expected[name].view(torch.uint8))
            if tensor.dim()
            else (tensor == expected[name])
        ), name


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(writers=st.integers(1, 4), readers=st.integers(1, 4), seed=SEEDS)
def test_any_layout_to_any_layout(tmp_path_factory, writers: int, readers: int, seed: int) -> None:
    folder = tmp_path_factory.mktemp("checkpoints")
    tensors = make_tensors(seed)
    save(folder, 7, deal(tensors, writers, seed))
    wanted = deal(tensors, readers, seed + 1, replicas=True, blank=True)
    for loaded, passed_over in load(folder, wanted):
        assert loaded is not None and loaded.step == 7 and loaded.progress == {"step": 7} and not passed_over
    assert_equal(wanted, tensors)


def test_a_shard_is_a_safetensors_file_that_the_library_reads(tmp_path: Path) -> None:
    tensors = make_tensors(1)
    layout = deal(tensors, 2, 1)
    path = save(tmp_path, 7, layout)
    stored = {}
    for rank in range(2):
        stored |= load_file(path / f"shard-{rank:05d}.safetensors")
    pieces = [piece for pieces in layout.ranks for piece in pieces]
    assert len(stored) == len(pieces)
    for piece in pieces:
        assert torch.equal(stored[f"{piece.name}@{','.join(map(str, piece.start))}"], piece.data)


def test_a_rank_without_pieces_writes_an_empty_shard(tmp_path: Path) -> None:
    tensors = make_tensors(2)
    layout = deal(tensors, 1, 2)
    path = save(tmp_path, 7, RankedPieces([layout.ranks[0], []]))
    assert load_file(path / "shard-00001.safetensors") == {}
    wanted = RankedPieces([[], *deal(tensors, 2, 3, blank=True).ranks])
    load(tmp_path, wanted)
    assert_equal(wanted, tensors)


def test_everything_that_does_not_fit_is_named_at_once(tmp_path: Path) -> None:
    tensors = make_tensors(3)
    save(tmp_path, 7, deal(tensors, 2, 3))
    other = dict(tensors)
    other["new.weight"] = other.pop("model.norm.weight")
    other["model.embed_tokens.weight"] = torch.zeros(38, 16)
    other["optimizer.step"] = torch.zeros((), dtype=torch.int32)
    wanted = deal(other, 2, 4, blank=True)
    with pytest.raises(InputError) as raised:
        load(tmp_path, wanted, accept=lambda manifest: [Problem("tokenizer", "a", "is another tokenizer")])
    keys = {problem.key for problem in raised.value.problems}
    expected = {"tokenizer", "new.weight", "model.norm.weight", "model.embed_tokens.weight", "optimizer.step"}
    assert keys == expected
    assert not any(tensor.any() for tensor in wanted.whole().values())


def test_elements_that_no_rank_wants_are_refused(tmp_path: Path) -> None:
    tensors = {"weight": torch.arange(12.0).reshape(3, 4)}
    save(tmp_path, 7, deal(tensors, 1, 1))
    part = RankedPieces([[Piece("weight", (3, 4), (0, 0), torch.zeros(2, 4))]])
    with pytest.raises(InputError, match="no rank takes all"):
        load(tmp_path, part)


@pytest.mark.parametrize(
    ("rows", "dtype"), [((0, 2), torch.float32), ((0, 0), torch.float32), ((0, 1), torch.float16)]
)
def test_pieces_that_do_not_make_whole_tensors_are_not_committed(
    tmp_path: Path, rows: tuple[int, int], dtype: torch.dtype
) -> None:
    """A gap, an overlap, two types in one tensor of three rows."""
    first, second = rows
    layout = RankedPieces(
        [
            [Piece("weight", (3, 4), (first, 0), torch.zeros(1, 4))],
            [Piece("weight", (3, 4), (second, 0), torch.zeros(3 - second, 4, dtype=dtype))],
        ]
    )
    with pytest.raises((CheckpointError, ValueError), match="weight"):
        save(tmp_path, 7, layout)
    assert Store(tmp_path).checkpoints() == []


def test_weights_alone_start_another_run(tmp_path: Path) -> None:
    tensors = make_tensors(5)
    path = save(tmp_path / "run" / "checkpoints", 7, deal(tensors, 2, 5))
    weights = {name: tensor for name, tensor in tensors.items() if not name.startswith("optimizer.")}
    for source in (tmp_path / "run", tmp_path / "run" / "checkpoints", path):
        wanted = deal(weights, 1, 6, blank=True)
        assert load_weights(source, wanted.ranks[0], Agreement(0, 1, None)).step == 7
        assert_equal(wanted, weights)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_weights(tmp_path / "nothing", wanted.ranks[0], Agreement(0, 1, None))


def test_verify_reads_everything(tmp_path: Path) -> None:
    path = save(tmp_path, 7, deal(make_tensors(8), 3, 8))
    assert verify(inspect(path)) == []
    with (path / "shard-00001.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    (fault,) = verify(inspect(path))
    assert "shard-00001.safetensors: bytes 0-" in fault
