"""Fine-tuning on packed examples gives the losses of one rank under every layout, read by the real loader."""

from pathlib import Path
from typing import Any

import pytest
import torch

from llmscale.config.schema import Config
from llmscale.data.blend import Blend
from llmscale.data.example_rows import ExampleRows
from llmscale.data.examples import ExampleSet, write_examples
from llmscale.data.loader import BatchSource
from llmscale.engine.engine import Engine
from llmscale.objectives.causal_lm import CausalLM
from llmscale.parallel.layout import Layout
from llmscale.parallel.world import World
from tests.distributed.tuning_examples import VOCABULARY, made_up_examples, sft_config
from tests.ranks import run_ranks

AGREEMENT = 1e-6
"""Relative, of each step's loss and of the tokens that are no padding."""
EXAMPLES = 90
STEPS = 10

LAYOUTS: dict[str, dict[str, Any]] = {
    "tp2": {"parallel": {"tensor": 2}, "cluster": {"processes_per_node": 2}},
    "sp2": {"parallel": {"tensor": 2, "sequence": True}, "cluster": {"processes_per_node": 2}},
    "pp2": {"parallel": {"pipeline": 2}, "cluster": {"processes_per_node": 2}},
    "dp2-zero2": {"zero": {"stage": 2}, "cluster": {"processes_per_node": 2}},
    "dp2-zero3": {"zero": {"stage": 3}, "cluster": {"processes_per_node": 2}},
    "sp2-pp2": {
        "parallel": {"tensor": 2, "sequence": True, "pipeline": 2},
        "cluster": {"processes_per_node": 4},
    },
}
Stream = list[tuple[float, int, float]]
"""Loss, tokens and gradient norm of each step."""


def stream_on_rank(_: int, config: Config, folder: Path) -> Stream:
    world = World(Layout.of(config.parallel, config.world_size), torch.device("cpu"))
    engine = Engine(config, world, VOCABULARY, CausalLM())
    rows = ExampleRows(ExampleSet(folder), config.train.sequence_length, "0", 0, config.sft.packing)
    size = config.train.global_batch_size
    stream: Stream = []
    replica = (world.coordinates.data, world.layout.data)
    with BatchSource(config, "train", *replica, Blend([rows], [1.0])) as source:
        for step in range(STEPS):
            result = engine.step(source.step_batches(step * size, size))
            stream.append((result.loss, result.tokens, result.grad_norm))
    return stream


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sft") / "examples"
    write_examples(made_up_examples(EXAMPLES, seed=7, longest=30), folder, {})
    return folder


@pytest.fixture(scope="module")
def single_rank(folder: Path) -> dict[bool, Stream]:
    """Packed and padded."""
    return {
        packing: run_ranks(1, stream_on_rank, sft_config(packing), folder)[0] for packing in (True, False)
    }


def assert_same(found: list[Stream], expected: Stream) -> None:
    for stream in found:
        assert len(stream) == len(expected)
        for step, ((loss, tokens, norm), (its_loss, its_tokens, its_norm)) in enumerate(
            zip(stream, expected), 1
        ):
            assert tokens == its_tokens, step
            assert loss == pytest.approx(its_loss, rel=AGREEMENT), step
            assert norm == pytest.approx(its_norm, rel=10 * AGREEMENT), step


@pytest.mark.parametrize(("packing", "micro_batch_size"), [(True, 1), (True, 8), (False, 8)])
def test_accumulation_changes_nothing(
    folder: Path, single_rank: dict[bool, Stream], packing: bool, micro_batch_size: int
) -> None:
    expected = single_rank[packing]
    config = sft_config(packing, micro_batch_size=micro_batch_size)
    assert_same(run_ranks(1, stream_on_rank, config, folder), expected)
    assert expected[-1][0] < expected[0][0]


@pytest.mark.parametrize(
    ("packing", "layout"), [*((True, layout) for layout in LAYOUTS), (False, "sp2-pp2"), (False, "dp2-zero3")]
)
def test_every_layout(folder: Path, single_rank: dict[bool, Stream], packing: bool, layout: str) -> None:
    config = sft_config(packing, **LAYOUTS[layout])
    assert_same(run_ranks(config.world_size, stream_on_rank, config, folder), single_rank[packing])
