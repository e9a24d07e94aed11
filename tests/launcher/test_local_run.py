"""A whole run with `cluster.kind=local`, in real processes: submitted, preempted, requeued, cancelled."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from llmscale_launcher.job import read_job

from llmscale.run.standing import read_status
from llmscale.runtime.events import read_events
from llmscale.runtime.metrics import last_metrics
from tests.distributed.trainings import Place

SECONDS = 180.0


def llmscale(place: Place, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llmscale", *arguments]
    return subprocess.run(command, cwd=place.folder, capture_output=True, text=True, check=False)


def wait_for(condition: Callable[[], object], folder: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, (folder / "logs" / "job.log").read_text()
        time.sleep(0.1)


def test_submitted_preempted_requeued_cancelled(tmp_path: Path) -> None:
    place = Place.make(tmp_path)
    root, folder = place.folder / "runs", place.run("bg").folder
    overrides = ["run.name=bg", "train.steps=100000", "checkpoint.every=50000"]
    submitted = llmscale(place, "submit", str(place.config), *overrides)
    assert submitted.returncode == 0, submitted.stderr
    job = read_job(folder)
    assert job is not None and job.id in submitted.stdout
    pid = int(job.id.split("@")[0])
    try:
        wait_for(lambda: (last_metrics(folder) or {}).get("step", 0) > 3, folder)
        assert read_status(folder).state == "running"
        again = llmscale(place, "submit", str(place.config), *overrides)
        assert again.returncode == 2 and "llmscale cancel bg" in again.stderr
        # The processes run the frozen copy of the code.
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        assert f"PYTHONPATH={folder / 'code'}".encode() in environment

        os.kill(pid, signal.SIGUSR1)
        wait_for(lambda: "resumed" in [event.kind for event in read_events(folder)], folder)
        assert read_status(folder).requeues == 1

        done = llmscale(place, "cancel", "bg", "--root", str(root))
        assert done.returncode == 0, done.stderr
        found = read_status(folder)
        assert found.state == "cancelled"
        assert f"newest checkpoint: step {found.step}" in done.stdout
    finally:
        if lives(pid):
            os.killpg(pid, signal.SIGKILL)
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, found.step + 1))
    kinds = [event.kind for event in read_events(folder)]
    assert kinds == [
        *["submitted", "started", "saved", "preempted", "requeued"],
        *["started", "resumed", "saved", "preempted"],
    ]


def lives(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()
