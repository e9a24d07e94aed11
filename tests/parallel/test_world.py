"""A World that is closed leaves nothing behind."""

import gc
import weakref
from pathlib import Path

import pytest

from llmscale.engine.engine import Engine
from llmscale.parallel.world import World
from tests.engine.saved_states import batches, make_engine, state_config
from tests.ranks import run_ranks


def use(layout: str) -> tuple[World, "weakref.ref[Engine]", int]:
    """A closed World with a closed engine that was trained on it, and the threads while it was open."""
    engine = make_engine(state_config(layout))
    engine.step(batches(engine.config, engine.world, 0))
    threads = count_threads()
    engine.close()
    engine.world.close()
    return engine.world, weakref.ref(engine), threads


def count_threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def closed_rank(_: int, layout: str) -> tuple[int, int, int, bool]:
    use(layout)  # the first one starts threads that belong to the process
    gc.collect()
    before = count_threads()
    world, engine, during = use(layout)
    gc.collect()
    with pytest.raises(RuntimeError, match="closed"), world.active():
        pass
    world.close()
    return before, during, count_threads(), engine() is None


@pytest.mark.parametrize("layout", ["tensor 2", "pipeline 2, interleaved", "data 2, ZeRO-1"])
def test_threads_and_engines_go_away(layout: str) -> None:
    for before, during, after, collected in run_ranks(2, closed_rank, layout):
        assert during > before + 10
        assert after == before
        assert collected
