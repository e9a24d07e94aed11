"""A whole run with `cluster.kind=local`, in real processes: submitted, preempted, requeued, cancelled."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from llmscale_launcher.job import read_job

from llmscale.run.standing import read_status
from llmscale.runtime.events import read_events
from llmscale.runtime.metrics import last_metrics, read_metrics
from tests.distributed.trainings import Place

SECONDS = 180.0


def llmscale(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llmscale", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def wait_for(condition: Callable[[], object], folder: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, (folder / "logs" / "job.log").read_text()
        time.sleep(0.1)


def test_submitted_preempted_requeued_cancelled(tmp_path: Path) -> None:
    place = Place.make(tmp_path)
    root, folder = place.folder / "runs", place.run("bg").folder
    overrides = ["run.name=bg", "train.steps=100000", "checkpoint.every=50000"]
    submitted = llmscale(place.folder, "submit", str(place.config), *overrides)
    assert submitted.returncode == 0, submitted.stderr
    job = read_job(folder)
    assert job is not None and job.id in submitted.stdout
    pid = int(job.id.split("@")[0])
    try:
        wait_for(lambda: (last_metrics(folder) or {}).get("step", 0) > 3, folder)
        assert read_status(folder).state == "running"
        again = llmscale(place.folder, "submit", str(place.config), *overrides)
        assert again.returncode == 2 and "llmscale cancel bg" in again.stderr
        # The processes run the frozen copy of the code.
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        assert f"PYTHONPATH={folder / 'code'}".encode() in environment

        os.kill(pid, signal.SIGUSR1)
        wait_for(lambda: "resumed" in [event.kind for event in read_events(folder)], folder)
        assert read_status(folder).requeues == 1

        done = llmscale(place.folder, "cancel", "bg", "--root", str(root))
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


SMALL = [
    "model={hidden_size: 32, layers: 2, heads: 2}",
    "train.steps=3",
    "train.epochs=null",
    "train.sequence_length=64",
    "train.global_batch_size=4",
    "train.generate=null",
    "optimizer.warmup_steps=1",
    "data.forgetting=[]",
    "parallel={}",
    "cluster={processes_per_node: 1, threads: 1}",
    "logging.wandb=off",
]


@pytest.mark.usefixtures("demo")
def test_a_submitted_pipeline_goes_from_nothing_to_preferences(place: Path, repository: Path) -> None:
    """Pretraining, fine-tuning, a reward model and DPO, one after the other in the background."""
    pipeline = repository / "configs" / "pipeline" / "preferences.yaml"
    submitted = llmscale(place, "submit", str(pipeline), *SMALL)
    assert submitted.returncode == 0, submitted.stderr
    folders = [place / "runs" / f"preferences-{stage}" for stage in ("pretrain", "sft", "reward", "dpo")]
    jobs = [read_job(folder) for folder in folders]
    try:
        wait_for(
            lambda: read_status(folders[-1]).state not in ("pending", "starting", "running"), folders[-1]
        )
    finally:
        for job in jobs:
            assert job is not None
            if lives(pid := int(job.id.split("@")[0])):
                os.killpg(pid, signal.SIGKILL)
    assert [read_status(folder).state for folder in folders] == ["done"] * 4
    spans = [
        [event.time for event in read_events(folder) if event.kind in ("started", "finished")]
        for folder in folders
    ]
    assert [len(span) for span in spans] == [2, 2, 2, 2]
    assert sum(spans, []) == sorted(sum(spans, []))
    reward, dpo = (read_metrics(folder)[0] for folder in folders[2:])
    assert dpo["loss"] == pytest.approx(math.log(2), abs=1e-4) and dpo["kl"] == 0
    assert reward["margin"] != 0


def lives(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()
