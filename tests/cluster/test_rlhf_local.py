"""Reinforcement learning in the background of this machine: its driver starts a Ray of its own beside it."""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from llmscale.runtime.metrics import read_metrics
from tests.cluster.ray_runs import RayPlace, RaySubmitted
from tests.cluster.rlhf_place import make_rlhf

pytestmark = pytest.mark.cluster

SOMETHING_ELSE = {"RAY_ADDRESS": "http://127.0.0.1:1"}
"""Of a user who also does other things with Ray."""


def of_the_run(folder: Path) -> list[psutil.Process]:
    """Whatever has the run's copy of the code in its environment, Ray's own processes among them."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            if str(folder / "code") in process.environ().get("PYTHONPATH", ""):
                found.append(process)
        except psutil.Error:  # gone, or another user's
            continue
    return found


@pytest.fixture
def place(tmp_path: Path) -> Iterator[RayPlace]:
    """Of which nothing runs on when a test has failed."""
    made = RayPlace(make_rlhf(tmp_path, {"kind": "local"}), SOMETHING_ELSE)
    yield made
    for process in of_the_run(made.place.run("long").folder):
        with suppress(psutil.NoSuchProcess):
            process.kill()


def test_submitted_cancelled_and_submitted_again(place: RayPlace) -> None:
    place.llmscale("submit", "rlhf.yaml", "run.name=long", "train.steps=1000", "checkpoint.every=1000")
    submitted = RaySubmitted(place.place.run("long"))
    submitted.wait_until(lambda: submitted.run.last_step() >= 2, "two steps are made", 200)
    listed = json.loads(place.llmscale("status", "--root", "runs", "--json").stdout)
    told = next(run for run in listed if run["name"] == "long")
    assert told["state"] == "running" and told["step"] >= 2
    place.llmscale("cancel", "long", "--root", "runs")
    saved = submitted.run.last_step()
    assert submitted.run.committed_steps() == [saved]
    folder = submitted.run.folder
    submitted.wait_until(lambda: not of_the_run(folder), "nothing of it is left", 20)
    more = ("train.steps=1000", f"train.stop_at={saved + 1}")
    place.llmscale("submit", "rlhf.yaml", "run.name=long", *more)
    log = place.llmscale("logs", "long", "-f", "--job", "--root", "runs").stdout
    assert f"saved step {saved}" in log and f"saved step {saved + 1}" in log
    assert [event.step for event in submitted.run.events("resumed")] == [saved]
    assert [line["step"] for line in read_metrics(folder)] == list(range(1, saved + 2))
    submitted.wait_until(lambda: not of_the_run(folder), "nothing of it is left", 20)
