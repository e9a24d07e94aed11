"""How runs stand, from their files and from what a scheduler says."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from llmscale.commands import status as command
from llmscale.run.groups import all_groups, find_group
from llmscale.run.standing import last_step, newest_saved, read_status, read_statuses
from llmscale.runtime.hooks import Part
from llmscale.runtime.parts import PartFile
from llmscale.runtime.run_folder import write_agent
from tests.launcher.fake_scheduler import FakeScheduler
from tests.launcher.standing_runs import EventLine, commit, make_run, slurm_job

FAILED = ("failed", {"rank": 2, "host": "node-7", "cause": "killed by SIGKILL"})


@pytest.fixture
def scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeScheduler:
    fake = FakeScheduler(tmp_path / "slurm")
    monkeypatch.setenv("PATH", fake.path)
    return fake


Stand = tuple[str, str | None]

CASES: dict[str, tuple[str, list[EventLine], int, bool, Stand]] = {
    # What squeue says, events, steps so far, whether it was cancelled: state and reason.
    "waits in the queue": ("PENDING Resources", ["submitted"], 0, False, ("pending", "Resources")),
    "has begun": ("RUNNING", ["submitted"], 0, False, ("starting", None)),
    "agents are there": ("RUNNING", ["submitted", "started"], 0, False, ("starting", None)),
    "trains": ("RUNNING", ["submitted", "started"], 7, False, ("running", None)),
    "trains again in place": (
        "RUNNING",
        ["submitted", "started", FAILED, "restarted"],
        7,
        False,
        ("running", None),
    ),
    "leaves": ("RUNNING", ["submitted", "started", "preempted"], 7, False, ("stopping", "saved")),
    "is asked to go": ("RUNNING", ["submitted", "started"], 7, True, ("stopping", "cancelled")),
    "was cancelled": ("CANCELLED", ["submitted", "started", "preempted"], 7, True, ("cancelled", None)),
    "cancelled in the queue": ("CANCELLED", ["submitted"], 0, True, ("cancelled", None)),
    "is done, and its job leaves": (
        "COMPLETING",
        ["submitted", "started", "finished"],
        7,
        False,
        ("done", None),
    ),
    "is done": ("COMPLETED", ["submitted", "started", "finished"], 7, False, ("done", None)),
    "failed": ("FAILED", ["submitted", "started", FAILED], 7, False, ("failed", "killed by SIGKILL")),
    "no more requeues": ("FAILED", ["submitted", "started", "preempted"], 7, False, ("saved", "can go on")),
    "unfit nodes": (
        "FAILED",
        ["submitted", ("preflight_failed", {"cause": "node2: clock"})],
        0,
        False,
        ("failed", "node2: clock"),
    ),
    "said nothing": ("FAILED 2", ["submitted"], 0, False, ("failed", "exit code 2, see logs/job.log")),
    "was killed": ("TIMEOUT", ["submitted", "started"], 7, False, ("gone", "TIMEOUT")),
    "was forgotten": ("", ["submitted", "started"], 7, False, ("gone", "its processes ended without a word")),
    "an old end does not count": (
        "PENDING Priority",
        ["submitted", "started", "finished", "submitted"],
        7,
        False,
        ("pending", "Priority"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_states(tmp_path: Path, scheduler: FakeScheduler, case: str) -> None:
    said, events, step, cancelled, expected = CASES[case]
    folder = make_run(tmp_path / "runs", events=events, step=step, job=slurm_job("5"))
    if said:
        state, _, reason = said.partition(" ")
        code = int(reason) if reason.isdigit() else 0
        scheduler.set_state("5", state, reason=reason or "None", nodes="node[1-2]", exit_code=code)
    if cancelled:
        (folder / ".cancelled").touch()
    found = read_status(folder)
    assert (found.state, found.reason) == expected


def test_requeued(tmp_path: Path, scheduler: FakeScheduler) -> None:
    events = ["submitted", "started", "preempted", ("requeued", {"requeue": 4})]
    folder = make_run(tmp_path / "runs", events=events, step=7, job=slurm_job("5"))
    scheduler.set_state("5", "PENDING", reason="BeginTime", restarts=4)
    found = read_status(folder)
    assert (found.state, found.reason, found.requeues) == ("requeued", "BeginTime", 4)


def test_waiting_for_others_names_them(tmp_path: Path, scheduler: FakeScheduler) -> None:
    job = slurm_job("6", depends_on=["afterok:5"])
    folder = make_run(tmp_path / "runs", events=["submitted"], job=job)
    scheduler.set_state("6", "PENDING", reason="Dependency")
    assert read_status(folder).reason == "waits for afterok:5"


def test_a_scheduler_that_does_not_answer(tmp_path: Path, scheduler: FakeScheduler) -> None:
    """Then the files speak: fresh ones of a run that runs, stale ones of nobody knows what."""
    scheduler.refuse("squeue", "slurm_load_jobs error: Unable to contact slurm controller")
    folder = make_run(tmp_path / "runs", events=["submitted", "started"], step=7, job=slurm_job("5"))
    assert read_status(folder).state == "running"
    for path in folder.iterdir():
        os.utime(path, (time.time() - 3600,) * 2)
    found = read_status(folder)
    assert (found.state, found.reason) == ("unknown", "squeue gave no answer")


def test_an_agent_on_another_host(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "runs", events=["started"], step=7)
    agent = {"pid": os.getpid(), "created": time.time(), "host": "elsewhere"}
    (folder / "agent.json").write_text(json.dumps(agent))
    os.utime(folder / "agent.json", (time.time() - 60,) * 2)
    assert read_status(folder).state == "running"
    for path in folder.iterdir():
        os.utime(path, (time.time() - 3600,) * 2)
    assert (read_status(folder).state, read_status(folder).reason) == ("unknown", "was started on elsewhere")


def test_one_question_for_all_jobs(tmp_path: Path, scheduler: FakeScheduler) -> None:
    folders = []
    for number in range(1, 31):
        job = slurm_job(str(number))
        folders.append(make_run(tmp_path / "runs", f"run-{number}", ["submitted"], job=job))
        scheduler.set_state(str(number), "PENDING", reason=f"reason {number}")
    reasons = [found.reason for found in read_statuses(folders)]
    assert reasons == [f"reason {number}" for number in range(1, 31)]
    assert len(scheduler.calls("squeue")) == 1


@pytest.mark.parametrize(("train", "steps"), [({}, 100), ({"stop_at": 40}, 40), ({"stop_at": 400}, 100)])
def test_last_step_without_the_whole_config(tmp_path: Path, train: dict[str, int], steps: int) -> None:
    folder = make_run(tmp_path, **train)
    assert last_step(folder) == steps
    # In another order it takes the long way.
    lines = f"  steps: 100\n  epochs: null\n  stop_at: {train.get('stop_at', 'null')}\n"
    text = (folder / "config.yaml").read_text()
    assert lines in text
    (folder / "config.yaml").write_text(text.replace(lines, "".join(lines.splitlines(True)[::-1])))
    assert last_step(folder) == steps


def test_epochs_end_where_the_ranks_say(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "new", ["started"], epochs=2)
    assert last_step(folder) is None
    assert read_status(folder).steps is None and " 0/? " in shown(tmp_path)
    folder = make_run(tmp_path, "running", ["started"], step=7, planned=34, epochs=2)
    write_agent(folder)
    os.utime(folder / "agent.json", (time.time() - 5,) * 2)
    found = read_status(folder)
    assert (found.state, found.step, found.steps, found.seconds_left) == ("running", 7, 34, 13.5)


def test_a_run_that_stopped_early_is_at_its_end(tmp_path: Path) -> None:
    stopped = ("stopped_early", {"cause": "no better loss"})
    found = read_status(make_run(tmp_path, events=["started", stopped, "finished"], step=7, planned=34))
    assert (found.state, found.step, found.steps, found.seconds_left) == ("done", 7, 7, None)


def test_newest_saved_needs_the_marker(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    assert newest_saved(folder) is None
    commit(folder, 20)
    commit(folder, 100)
    (folder / "checkpoints" / "step-00000300").mkdir()
    (folder / "checkpoints" / ".step-00000400.partial").mkdir()
    assert newest_saved(folder) == 100


def shown(root: Path, run: str | None = None) -> str:
    console = Console(width=200, color_system=None)
    with console.capture() as capture:
        console.print(command._shown(run, root), soft_wrap=True)
    return capture.get()


def make_sweep(root: Path) -> None:
    runs = []
    for index, state in enumerate((["finished"], [FAILED], ["preempted"])):
        folder = make_run(root, f"sweep-{index:04d}", ["submitted", "started", *state], step=7)
        runs.append({"run": str(folder), "changes": {"optimizer.lr": 10.0**-index}, "job": f"9_{index}"})
    (root / "sweep").mkdir()
    (root / "sweep" / "sweep.json").write_text(json.dumps({"name": "sweep", "runs": runs}))


def test_sweeps_stand_together(tmp_path: Path) -> None:
    make_sweep(tmp_path)
    make_run(tmp_path, "alone", ["started", "finished"], step=100)
    lines = shown(tmp_path).splitlines()
    assert [line.split()[0] for line in lines] == [
        "run",
        "alone",
        "sweep",
        "sweep-0000",
        "sweep-0001",
        "sweep-0002",
    ]
    assert lines[2].endswith("sweep: 1 done, 1 failed, 1 saved, can go on")
    assert "(optimizer.lr=0.1)" in lines[4]
    assert lines[4].endswith("failed at step 7: rank 2 on node-7: killed by SIGKILL")
    alone = shown(tmp_path, "sweep").splitlines()
    assert [line.split() for line in alone[1:]] == [line.split() for line in lines[2:]]


def test_pipelines_show_their_stages(tmp_path: Path) -> None:
    stages = []
    for name, events in (("first", ["started", "finished"]), ("second", ["submitted"])):
        folder = make_run(tmp_path, f"both-{name}", events)
        stages.append({"name": name, "run": str(folder), "job": "1"})
    (tmp_path / "both").mkdir()
    (tmp_path / "both" / "pipeline.json").write_text(json.dumps({"name": "both", "stages": stages}))
    assert [member.note for member in find_group("both", tmp_path).members] == ["first", "second"]
    lines = shown(tmp_path, "both").splitlines()
    assert "pipeline: 1 done, 1 gone without a word" in lines[1]
    assert "both-first (first)" in lines[2]
    assert [group.name for group in all_groups(tmp_path)] == ["both"]


def test_one_run_with_reports_of_the_watchdog(tmp_path: Path) -> None:
    stack = ['File "train.py", line 3, in step', "    all_reduce()"]
    events: list[EventLine] = [
        "submitted",
        "started",
        ("hanging", {"rank": 1, "host": "node-2", "cause": "is not in the collective", "stack": stack}),
        ("requeued", {"requeue": 1, "cause": "killed by SIGTERM"}),
        "started",
    ]
    make_run(tmp_path, events=events, step=7)
    text = shown(tmp_path, "run")
    for part in (
        "hanging at step 7: rank 1 on node-2: is not in the collective",
        '| File "train.py", line 3, in step',
        "requeued (1): killed by SIGTERM",
        "requeues   1",
    ):
        assert part in text


def test_a_run_on_rewards_tells_of_its_answers_and_of_what_it_is_at(tmp_path: Path) -> None:
    folder = make_run(tmp_path, events=["started"], step=7)
    answers = {"reward_mean": 0.4375, "kl_answer": 0.0123, "answer_tokens": 18.25, "rollout_gap": 4e-7}
    speed = {"loss": 0.01, "step_seconds": 0.5, "tokens_per_second": 4000.0}
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 8, **speed, **answers}) + "\n")
    PartFile(folder).on_part(Part(9, "rollout", 256))
    agent = {"pid": os.getpid(), "created": time.time(), "host": "elsewhere"}
    (folder / "agent.json").write_text(json.dumps(agent))
    os.utime(folder / "agent.json", (time.time() - 60,) * 2)
    lines = [line.split(maxsplit=1) for line in shown(tmp_path, "run").splitlines() if " " in line.strip()]
    told = {name: text.strip() for name, text in lines}
    assert told["now"] == "step 9: writing answers (256)" and "loss" not in told
    assert told["answers"] == "reward 0.438, KL 0.0123, length 18.2, gap 4e-07"
    assert "8/100  reward 0.438 KL 0.0123  4k" in shown(tmp_path)
    document = json.loads(json.dumps(command._as_json(None, tmp_path)))[0]
    assert (document["part"]["name"], document["part"]["count"]) == ("rollout", 256)


def test_json_of_all_and_of_one(tmp_path: Path) -> None:
    make_sweep(tmp_path)
    everything = command._as_json(None, tmp_path)
    assert {entry["name"]: entry["state"] for entry in everything} == {
        "sweep-0000": "done",
        "sweep-0001": "failed",
        "sweep-0002": "saved",
    }
    assert everything[0]["group"] == {"kind": "sweep", "name": "sweep"}
    one = json.loads(json.dumps(command._as_json("sweep-0001", tmp_path)))
    assert (one["step"], one["steps"], one["metrics"]["loss"], one["saved"]) == (7, 100, 2.5, None)
    assert [event["kind"] for event in one["events"]] == ["submitted", "started", "failed"]
    assert one["last_failure"]["details"]["host"] == "node-7"


def test_a_thousand_runs_in_two_seconds(tmp_path: Path, scheduler: FakeScheduler, repository: Path) -> None:
    root = tmp_path / "runs"
    first = make_run(root, "run-0000", ["submitted", "started", FAILED, "restarted"], step=50)
    saved = json.dumps({"event": "saved", "time": 1.0, "step": 5, "seconds": 0.1, "path": "x"}) + "\n"
    with (first / "events.jsonl").open("a") as file:
        file.write(saved * 200)
    names = ("config.yaml", "events.jsonl", "metrics.jsonl")
    texts = {name: (first / name).read_text() for name in names}
    table = ""
    for number in range(1, 1000):
        folder = root / f"run-{number:04d}"
        folder.mkdir()
        for name, text in texts.items():
            (folder / name).write_text(text)
        commit(folder, 50)
        (folder / "job.json").write_text(json.dumps(vars(slurm_job("7", number))))
        table += f"7_{number}|RUNNING|None|node{number}|0|0|\n"
    (scheduler.folder / "jobs" / "7").write_text(table)
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "llmscale", "status", "--root", str(root)],
            cwd=repository,
            capture_output=True,
            text=True,
            check=True,
        )
        seconds.append(time.perf_counter() - began)
    print(f"status of 1,000 runs: {min(seconds):.2f} s")
    rows = done.stdout.splitlines()[1:]
    assert len(rows) == 1000
    assert sum(" running " in row and " 50/100 " in row for row in rows) == 999
    assert min(seconds) < 2
