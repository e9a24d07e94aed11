"""A run that is killed, stopped or moved to another layout goes on as if nothing had happened.

The oracle is an uninterrupted run. Under the same layout everything must equal it to the bit: each step's
loss, gradient norm, learning rate and counters, and every tensor of the last checkpoint.
"""

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import psutil
import pytest
import torch

from llmscale.config.load import load_config, read_resolved
from llmscale.config.problems import InputError
from llmscale.data.loader import BatchSource
from tests.distributed.kills import Kill, killing, killing_by_the_clock, plan
from tests.distributed.trainings import (
    DP2,
    PP2_INTERLEAVED,
    TP2_PP2,
    Command,
    Place,
    Run,
    assert_same_run,
)

LAYOUTS: dict[str, tuple[str, ...]] = {
    "tensor 2 x pipeline 2, ZeRO-1, bf16, dropout": (*TP2_PP2, "train.precision=bf16", "model.dropout=0.1"),
    "data 2, ZeRO-1, fp32": DP2,
    "data 2, ZeRO-2, bf16, dropout": (*DP2, "zero.stage=2", "train.precision=bf16", "model.dropout=0.1"),
    "data 2, ZeRO-3, fp32": (*DP2, "zero.stage=3"),
    "data 2, ZeRO-3, bf16": (*DP2, "zero.stage=3", "train.precision=bf16"),
    "one rank, bf16": ("train.precision=bf16",),
    "pipeline 2, interleaved, tied, dropout": (
        *PP2_INTERLEAVED,
        "model.tie_embeddings=true",
        "model.dropout=0.1",
    ),
    "tensor 2, sequence, data 2": (
        *DP2,
        "parallel.tensor=2",
        "parallel.sequence=true",
        "cluster.processes_per_node=4",
    ),
}
LONG_STEPS = ("train.global_batch_size=64", "train.steps=24")
"""Steps long enough to aim at from outside."""


def ranks_of(overrides: tuple[str, ...]) -> int:
    return next((int(o[-1]) for o in reversed(overrides) if o.startswith("cluster.processes")), 1)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place.make(tmp_path_factory.mktemp("resume"))


@pytest.mark.parametrize(
    ("layout", "kills"),
    [
        ("tensor 2 x pipeline 2, ZeRO-1, bf16, dropout", [Kill(3, 4, "step", 0.05), Kill(0, 7, "save", 0)]),
        ("data 2, ZeRO-2, bf16, dropout", [Kill(1, 5, "save", 0)]),
        ("data 2, ZeRO-3, fp32", [Kill(0, 1, "step", 0.0)]),
    ],
)
def test_killed_ranks(place: Place, layout: str, kills: list[Kill]) -> None:
    oracle = place.uninterrupted(f"oracle of {layout}".replace(" ", "-").replace(",", ""), *LAYOUTS[layout])
    survive(place, oracle, f"killed {layout}".replace(" ", "-").replace(",", ""), LAYOUTS[layout], kills)


@pytest.mark.soak
@pytest.mark.parametrize("layout", LAYOUTS)
def test_twenty_kills(
    place: Place,
    layout: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    overrides = (*LAYOUTS[layout], "train.steps=24")
    name = layout.replace(" ", "-").replace(",", "")
    oracle = place.uninterrupted(f"long-oracle-{name}", *overrides)
    recoveries = survive(place, oracle, f"twenty-{name}", overrides, plan(20, 20, ranks_of(overrides), 24))
    with capsys.disabled():
        print(
            f"\n{layout}: kill to next step, median {median(recoveries):.2f} s, worst {max(recoveries):.2f} s"
        )


@pytest.mark.soak
def test_kills_at_any_time(place: Place) -> None:
    """Also while ranks start, load, or leave: ten kills by the clock, one after the other."""
    overrides = (*LAYOUTS["tensor 2 x pipeline 2, ZeRO-1, bf16, dropout"], "train.steps=24")
    oracle, run = place.uninterrupted("clock-oracle", *overrides), place.run("clock")
    with killing_by_the_clock(run, seed=7, kills=10, ranks=4):
        assert place.train("clock", *overrides, "cluster.max_restarts=30") == 0, run.rank_logs()
    assert len(run.events("failed")) >= 5
    assert_same_run(run, oracle)


def survive(
    place: Place, oracle: Run, name: str, overrides: tuple[str, ...], kills: list[Kill]
) -> list[float]:
    run = place.run(name)
    with killing(run, kills) as killer:
        code = place.train(name, *overrides)
    assert code == 0, run.rank_logs()
    failures = run.events("failed")
    assert [event.details["rank"] for event in failures] == [kill.rank for kill in kills]
    assert all(event.details["cause"].startswith("killed by SIGKILL") for event in failures)
    assert len(run.events("restarted")) == len(kills)
    assert_same_run(run, oracle)
    return killer.recoveries


def test_commands_that_are_killed_and_signalled(place: Place) -> None:
    """Through the command line: the whole group is killed, then every polite way to stop, then the end."""
    overrides = (*DP2, *LONG_STEPS, "model.dropout=0.1")
    oracle, run = place.uninterrupted("signals-oracle", *overrides), place.run("signals")

    with place.start("signals", *overrides) as command:
        wait_for_step(run, 4, command)
        command.send(signal.SIGKILL, to_group=True)
        assert command.wait() == -signal.SIGKILL
    with place.start("signals", *overrides) as command:
        wait_for_step(run, 5, command)
        command.send(signal.SIGINT, to_group=True)
        assert command.wait() == 75, command.output.read_text()
    assert_saved_last_step(run, resumed=3)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        saved = run.last_step()
        with signalling(run, saved + 2, number):
            assert place.train("signals", *overrides) == 75
        assert_saved_last_step(run, resumed=saved)
    saved = run.last_step()
    assert place.train("signals", *overrides) == 0
    assert run.events("resumed")[-1].step == saved
    # Only the SIGKILL made steps be done again.
    assert [line[0] for line in run.superseded()] == list(range(4, 4 + len(run.superseded())))
    assert_same_run(run, oracle)


def assert_saved_last_step(run: Run, resumed: int) -> None:
    """A signal loses nothing: the last step that stands in the metrics is the one that is saved."""
    assert run.last_step() == run.committed_steps()[-1]
    assert run.events("resumed")[-1].step == resumed
    assert run.events("preempted")[-1].step == run.last_step()


def test_second_interrupt_ends_at_once(place: Place) -> None:
    """Even where a rank never comes to the end of its step."""
    with place.start("interrupted", "train.steps=10000", *LONG_STEPS[:1]) as command:
        run = place.run("interrupted")
        wait_for_step(run, 1, command)
        ranks = rank_processes(command)
        ranks[0].suspend()
        command.send(signal.SIGINT, to_group=True)
        time.sleep(0.5)
        assert command.process.poll() is None
        began = time.monotonic()
        command.send(signal.SIGINT, to_group=True)
        assert command.wait(20) == 1
        assert time.monotonic() - began < 5
        assert not psutil.wait_procs(ranks, 5)[1]


def test_stop_at_and_go_on(place: Place) -> None:
    """`stop_at` cuts the run, not the schedule."""
    oracle = place.uninterrupted("whole")
    for stop in ("4", "9", "null"):
        assert place.train("in-parts", f"train.stop_at={stop}") == 0
    assert_same_run(place.run("in-parts"), oracle)
    assert [event.step for event in place.run("in-parts").events("resumed")] == [4, 9]


def test_finished_run_stays_as_it_is(place: Place) -> None:
    oracle = place.uninterrupted("finished-oracle", "train.steps=4")
    place.uninterrupted("finished", "train.steps=4")
    assert place.train("finished", "train.steps=4") == 0
    assert_same_run(place.run("finished"), oracle)


MOVES: tuple[tuple[str, ...], ...] = (
    TP2_PP2,
    DP2,
    (*DP2, "zero.stage=3"),
    ("parallel.tensor=2", "cluster.processes_per_node=2"),
    (),
)


def test_going_on_under_other_layouts(place: Place) -> None:
    """TP2×PP2 → DP2 ZeRO-1 → DP2 ZeRO-3 → TP2 → one rank; the losses stay those of a single rank."""
    oracle, run = place.uninterrupted("one-rank", "train.steps=15"), place.run("moving")
    for number, layout in enumerate(MOVES, start=1):
        assert place.train("moving", *layout, "train.steps=15", f"train.stop_at={3 * number}") == 0
    for line, expected in zip(run.stream(), oracle.stream(), strict=True):
        step, samples, tokens, loss, grad_norm, lr = line
        assert (step, samples, tokens, lr) == (*expected[:3], expected[5])
        assert loss == pytest.approx(expected[3], rel=1e-5)
        assert grad_norm == pytest.approx(expected[4], rel=1e-3)
    difference = {
        name: float((tensor - run.tensors()[name]).abs().max()) for name, tensor in oracle.tensors().items()
    }
    assert max(difference.values()) < 1e-5, difference


def test_resume_on_other_numbers_of_ranks(place: Place) -> None:
    """By the command line: four ranks stop half-way, one rank and two go on, at the same samples."""
    oracle = place.uninterrupted("on-four-oracle", *TP2_PP2)
    with place.start("on-four", *TP2_PP2, "train.stop_at=6") as command:
        assert command.wait() == 0, command.output.read_text()
    for name, replicas, layout in (("on-one", 1, ()), ("on-two", 2, (*DP2, "zero.stage=3"))):
        run = place.run(name)
        shutil.copytree(place.run("on-four").folder, run.folder)
        with place.start(name, *layout) as command:
            assert command.wait() == 0, command.output.read_text()
        assert run.stream()[:6] == oracle.stream()[:6]
        for line, expected in zip(run.stream(), oracle.stream(), strict=True):
            assert (*line[:3], line[5]) == (*expected[:3], expected[5])
            assert line[3] == pytest.approx(expected[3], rel=5e-6)
        resumed = run.events("resumed")[-1]
        assert resumed.step == 6
        consumed = int(run.stream()[5][1])
        assert samples_of(run, replicas, consumed) == samples_of(oracle, 1, consumed)


def samples_of(run: Run, replicas: int, consumed: int) -> list[str]:
    """What the replicas read in the step after `consumed` samples, by the run's own config."""
    found: list[str] = []
    for rank in range(replicas):
        with BatchSource(read_resolved(run.folder / "config.yaml"), "train", rank, replicas) as source:
            found += [repr(row) for batch in source.sample_ids(consumed, 8) for row in batch]
    return sorted(found)


@pytest.mark.parametrize("replicas", [2, 4, 8])
def test_sample_ids_under_other_data_parallel_sizes(place: Place, replicas: int) -> None:
    """From any position, all replicas together read the same samples of the same global batch."""
    config = load_config(place.config)
    for consumed in (0, 24, 8 * 1000):
        with BatchSource(config, "train", 0, 1) as alone:
            expected = [row for batch in alone.sample_ids(consumed, 8) for row in batch]
        found = []
        for rank in range(replicas):
            with BatchSource(config, "train", rank, replicas) as source:
                found += [row for batch in source.sample_ids(consumed, 8) for row in batch]
        assert sorted(map(repr, found)) == sorted(map(repr, expected))
        assert len(set(map(repr, found))) == 8


def test_beginning_from_another_runs_weights(place: Place) -> None:
    """`train.init_from`: the weights of a TP2 run under DP2, and all else anew: step, optimizer, warm-up."""
    first = place.uninterrupted("first", "parallel.tensor=2", "cluster.processes_per_node=2", "train.steps=4")
    options = (f"train.init_from={first.folder}", "optimizer.lr=1e-4", "optimizer.warmup_steps=2")
    second = place.uninterrupted("second", *DP2, *options, "train.seed=5", "train.steps=3")
    assert [line[:2] for line in second.stream()] == [(1, 8), (2, 16), (3, 24)]
    assert [line[5] for line in second.stream()][:2] == [5e-5, 1e-4]
    # The first step shows that these are the first run's weights: its loss is near where that one ended.
    assert (
        abs(second.stream()[0][3] - first.stream()[-1][3])
        < 0.1
        < first.stream()[0][3] - second.stream()[0][3]
    )
    # Moments begin at zero: after three steps they are as small as three steps make them.
    momenta = [t for name, t in second.tensors().items() if name.startswith("optimizer.exp_avg.")]
    assert all(torch.isfinite(tensor).all() for tensor in momenta)
    weights = {name: t for name, t in first.tensors().items() if not name.startswith("optimizer.")}
    moved = max(float((second.tensors()[name] - t).abs().max()) for name, t in weights.items())
    assert 0 < moved < 3 * 1e-4 * 1.2


def test_beginning_from_a_run_and_resuming(place: Place) -> None:
    """A resume goes on from the run's own checkpoint, not again from `init_from`."""
    first = place.uninterrupted("origin", "train.steps=3")
    options = (f"train.init_from={first.folder}", "train.steps=5")
    oracle = place.uninterrupted("heir-oracle", *options)
    for stop in ("3", "null"):
        assert place.train("heir", *options, f"train.stop_at={stop}") == 0
    assert_same_run(place.run("heir"), oracle)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("model.hidden_size=128", "model.hidden_size"),
        ("model.layers=4", "model.layers"),
        ("model.family=gpt2", "model.family"),
        ("model.tie_embeddings=true", "model.tie_embeddings"),
        ("model.norm_epsilon=1e-6", "model.norm_epsilon"),
    ],
)
def test_beginning_from_another_model_is_refused(place: Place, change: str, key: str) -> None:
    if not place.run("small").folder.exists():
        place.uninterrupted("small", "train.steps=1")
    with pytest.raises(InputError) as caught:
        place.train("refused", f"train.init_from={place.run('small').folder}", change)
    assert key in [problem.key for problem in caught.value.problems]
    assert not place.run("refused").folder.exists()


def test_beginning_from_nothing_is_refused(place: Place, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        place.train("refused", f"train.init_from={tmp_path}")
    assert [problem.key for problem in caught.value.problems] == ["train.init_from"]


def test_loss_that_is_not_finite_ends_the_run(place: Place) -> None:
    """With a word about it, no restarts that would meet the same, and no checkpoint of what came of it."""
    run = place.run("diverged")
    code = place.train("diverged", "optimizer.lr=3e38", "optimizer.warmup_steps=0", "checkpoint.every=1")
    assert code == 1
    [failure] = run.events("failed")
    assert "the loss of step" in failure.details["cause"]
    assert "lower optimizer.lr" in failure.details["cause"]
    assert not run.events("restarted")
    assert run.last_step() == 1
    for step in run.committed_steps():
        assert all(torch.isfinite(tensor).all() for tensor in run.tensors(step).values())


@contextmanager
def signalling(run: Run, step: int, number: signal.Signals) -> Iterator[None]:
    """Send this process a signal once `step` is done, if an agent is there to take it."""
    over = threading.Event()

    def send() -> None:
        while run.last_step() < step and not over.wait(0.01):
            pass
        if signal.getsignal(number) is not signal.SIG_DFL:
            os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def wait_for_step(run: Run, step: int, command: Command) -> None:
    deadline = time.monotonic() + 120
    while run.last_step() < step:
        assert command.process.poll() is None, command.output.read_text()
        assert time.monotonic() < deadline, f"no step {step} in two minutes"
        time.sleep(0.01)


def rank_processes(command: Command) -> list[psutil.Process]:
    """The ranks: children of the server, which is a child of the command."""
    server = [child for child in psutil.Process(command.process.pid).children() if child.children()]
    return [rank for parent in server for rank in parent.children()]
