"""Whole runs of which some steps are recorded: what is left, and that they are the same runs."""

import gzip
import json
from pathlib import Path

import pytest

from llmscale.commands.report import write_report
from llmscale.runtime.profiling.breakdown import Breakdown
from llmscale.runtime.profiling.files import read_breakdowns, trace_path
from tests.distributed.trainings import TP2_PP2, Place, Run

SHORT = ("train.steps=5", "checkpoint.every=null")


def assert_whole(found: Breakdown) -> None:
    spent = sum(sum(of_phase.values()) for of_phase in found.seconds.values())
    assert spent == pytest.approx(found.step_seconds, rel=1e-6)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place.make(tmp_path_factory.mktemp("profiled"))


@pytest.fixture(scope="module")
def profiled(place: Place) -> Run:
    return place.uninterrupted("profiled", *SHORT, "train.profile=2:3", "logging.progress=lines")


def test_it_is_the_same_run(place: Place, profiled: Run) -> None:
    plain = place.uninterrupted("plain", *SHORT)
    assert profiled.stream() == plain.stream()
    assert not (plain.folder / "profile").exists()


def test_where_the_time_goes(profiled: Run) -> None:
    (found,) = read_breakdowns(profiled.folder)
    assert (found.first, found.last, found.rank, found.stage) == (2, 3, 0, 0)
    spent = {phase: sum(of_phase.values()) for phase, of_phase in found.seconds.items()}
    assert_whole(found)
    assert set(spent) == {"data", "forward", "backward", "update", "rest"}
    for kind in ("matrix products", "attention", "norms", "activation", "rotary positions", "embedding"):
        assert all(found.seconds[phase].get(kind) for phase in ("forward", "backward")), kind  # pyright: ignore[reportArgumentType]
    assert found.seconds["update"]["optimizer"] > 0
    # A step is longer by what comes between two of them, such as a line of metrics.
    lines = json.loads("[" + ",".join((profiled.folder / "metrics.jsonl").read_text().splitlines()) + "]")
    whole = sum(line["step_seconds"] for line in lines[1:3]) / 2
    assert 0.5 * whole < found.step_seconds < whole
    products = [one for one in found.slowest if one.kind == "matrix products"]
    assert products and all("[" in one.shapes and one.calls >= 8 for one in products)
    assert found.peak_bytes["cpu"] > 0 and found.largest[0].bytes > 0


def test_the_trace_is_whole(profiled: Run) -> None:
    with gzip.open(trace_path(profiled.folder, (2, 3), 0)) as file:
        names = [event.get("name") for event in json.load(file)["traceEvents"]]
    assert names.count("step") == names.count("data") == names.count("update") == 2
    assert names.count("forward-compute") == names.count("backward-compute") == 2 * 8
    assert sorted(path.name for path in (profiled.folder / "profile").iterdir()) == [
        "steps-2-3-rank-0.json",
        "steps-2-3-rank-0.json.gz",
    ]
    (event,) = profiled.events("profiled")
    assert (event.step, event.details["first"]) == (3, 2)
    assert (profiled.folder / event.details["trace"]).exists()


def test_the_report_shows_it(profiled: Run, tmp_path: Path) -> None:
    written = write_report([profiled.folder], tmp_path)
    assert {path.name for path in written} == {"report.html", "loss.png", "profile.png"}
    text = (tmp_path / "report.html").read_text()
    for shown in ("Where the time of a step goes", "Steps 2–3 of rank 0", "<td>matrix products</td>"):
        assert shown in text, shown


def test_it_begins_again_with_a_run_that_goes_on(place: Place) -> None:
    """Steps before are gone; those from there on are recorded, and what has been recorded stays."""
    assert place.train("resumed", *SHORT, "train.stop_at=2", "train.profile=1") == 0
    assert place.train("resumed", *SHORT, "train.profile=2:4") == 0
    run = place.run("resumed")
    assert [(one.first, one.last) for one in read_breakdowns(run.folder)] == [(1, 1), (3, 4)]
    assert place.train("resumed", *SHORT, "train.steps=6", "train.profile=2") == 0
    (missed,) = run.events("not_profiled")
    assert "the run goes on after step 5" in missed.details["cause"]


def test_the_first_rank_of_each_stage(place: Place) -> None:
    layout = (*TP2_PP2, "train.precision=bf16", "train.recompute=full")
    run = place.uninterrupted("tensor-pipeline", *SHORT, "train.profile=2:3", *layout)
    assert run.stream() == place.uninterrupted("plain-tensor-pipeline", *SHORT, *layout).stream()
    found = read_breakdowns(run.folder)
    assert [(one.rank, one.stage) for one in found] == [(0, 0), (2, 1)]
    for one in found:
        assert_whole(one)
        assert one.seconds["pipeline"]["communication"] > 0
    assert found[1].seconds_of("loss") > 0 and not found[0].seconds_of("loss")


def test_zero_3(place: Place) -> None:
    overrides = ("cluster.processes_per_node=2", "zero.stage=3", "train.precision=bf16")
    (found,) = read_breakdowns(place.uninterrupted("zero", *SHORT, "train.profile=3", *overrides).folder)
    assert (found.first, found.last) == (3, 3)
    assert_whole(found)
    assert found.seconds["backward"]["communication"] > 0, "gradients are reduced as they come"
