"""The batch script as bash runs it, among programs that only remember: signals, exit codes, requeues."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from llmscale_launcher.backends.base import JobRequest
from llmscale_launcher.batch_script import batch_script

from llmscale.config.schema import Config
from tests.launcher.fake_scheduler import FakeScheduler

DEADLINE = 20.0


@dataclass
class Batch:
    """A job script and the SLURM around it."""

    scheduler: FakeScheduler
    folder: Path
    tasks: tuple[Path, ...] = ()

    def start(self, restarts: int = 0, task: int | None = None, **cluster: Any) -> "subprocess.Popen[str]":
        section = {"kind": "slurm", "python": "python", "preflight": False, **cluster}
        config = Config.model_validate({"cluster": section})
        script = batch_script(JobRequest(config, self.folder, self.tasks))
        variables = {"PATH": self.scheduler.path, "SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restarts)}
        if task is not None:
            variables["SLURM_ARRAY_TASK_ID"] = str(task)
        return subprocess.Popen(
            ["bash", "-c", script],
            env={**os.environ, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, restarts: int = 0, task: int | None = None, **cluster: Any) -> tuple[int, str]:
        """Exit code, and what it says."""
        process = self.start(restarts, task, **cluster)
        output, _ = process.communicate(timeout=DEADLINE)
        return process.returncode, output

    @property
    def was_requeued(self) -> bool:
        return ["requeue", "7"] in self.scheduler.calls("scontrol")

    @property
    def steps(self) -> list[str]:
        """The commands that were started on the nodes, in order."""
        return [arguments[-2] for arguments in self.scheduler.calls("srun")]

    def events(self) -> list[dict[str, Any]]:
        path = self.folder / "events.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def batch(tmp_path: Path) -> Batch:
    folder = tmp_path / "a run's folder"
    folder.mkdir()
    return Batch(FakeScheduler(tmp_path / "slurm"), folder)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("code", [0, 1, 2, 3])
def test_a_verdict_passes_through(batch: Batch, code: int) -> None:
    batch.scheduler.set_step("node", f"exit {code}")
    assert batch.run()[0] == code
    assert not batch.was_requeued
    assert batch.events() == []


@pytest.mark.parametrize(("code", "cause"), [(75, "saved"), (137, "killed"), (143, "killed")])
def test_saved_or_killed_means_another_turn(batch: Batch, code: int, cause: str) -> None:
    batch.scheduler.set_step("node", f"exit {code}")
    assert batch.run(restarts=2)[0] == 75
    assert batch.was_requeued
    last = batch.events()[-1]
    assert (last["event"], last["requeue"], last["job"], last["step"]) == ("requeued", 3, "7", None)
    assert cause in last["cause"]
    assert abs(last["time"] - time.time()) < DEADLINE


@pytest.mark.parametrize("cluster", [{"requeue": False}, {"max_requeues": 2}, {"max_requeues": 0}])
def test_no_more_turns_than_allowed(batch: Batch, cluster: dict[str, Any]) -> None:
    batch.scheduler.set_step("node", "exit 75")
    code, output = batch.run(restarts=2, **cluster)
    assert code == 75
    assert "not requeued" in output
    assert not batch.was_requeued


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED"])
def test_a_cancelled_job_does_not_come_back(batch: Batch, state: str) -> None:
    batch.scheduler.set_step("node", "exit 75")
    batch.scheduler.set_job(state)
    assert batch.run()[0] == 75
    assert not batch.was_requeued


def test_a_run_that_a_person_cancelled_does_not_come_back(batch: Batch) -> None:
    batch.scheduler.set_step("node", 'touch "$RUN/.cancelled"; exit 75')
    code, output = batch.run()
    assert (code, batch.was_requeued) == (75, False)
    assert "cancelled" in output


def test_a_script_that_was_left_behind_leaves_the_new_turn_alone(batch: Batch) -> None:
    batch.scheduler.set_step("node", "exit 75")
    batch.scheduler.set_job(restarts="1")
    code, output = batch.run(restarts=0)
    assert (code, batch.was_requeued) == (75, False)
    assert "already" in output


@pytest.mark.parametrize("step", ["preflight", "node"])
def test_steps_that_never_start_are_given_up_at_the_third_turn(batch: Batch, step: str) -> None:
    """As srun ends where the nodes do not reach each other."""
    batch.scheduler.set_step(step, "exit 233")
    turns = [batch.run(restarts=turn, preflight=True)[0] for turn in range(3)]
    assert turns == [75, 75, 3]
    assert [event["event"] for event in batch.events()] == ["requeued", "requeued", "failed"]
    assert "233" in batch.events()[-1]["cause"]


def test_a_turn_that_began_counts_anew(batch: Batch) -> None:
    batch.scheduler.set_step("node", """echo '{"event": "started"}' >>"$RUN/events.jsonl"; exit 137""")
    assert [batch.run(restarts=turn)[0] for turn in range(4)] == [75] * 4


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_signals_reach_the_agents_as_usr1(batch: Batch, number: signal.Signals) -> None:
    """And the script waits for what they answer, however often it is asked."""
    agent = "trap 'echo told >>\"$RUN/told\"' USR1; trap 'exit 99' TERM; touch \"$RUN/up\"\n"
    agent += "until [[ -e $RUN/told && -e $RUN/enough ]]; do sleep 0.02; done; exit 75"
    batch.scheduler.set_step("node", agent)
    process = batch.start()
    wait_for((batch.folder / "up").exists)
    process.send_signal(number)
    wait_for((batch.folder / "told").exists)
    process.send_signal(signal.SIGTERM)
    wait_for(lambda: len((batch.folder / "told").read_text().splitlines()) == 2)
    assert process.poll() is None
    (batch.folder / "enough").touch()
    process.communicate(timeout=DEADLINE)
    assert process.returncode == 75
    assert batch.was_requeued


def test_done_is_done_even_after_a_signal(batch: Batch) -> None:
    batch.scheduler.set_step("node", "trap 'exit 0' USR1; touch \"$RUN/up\"; while :; do sleep 0.02; done")
    process = batch.start()
    wait_for((batch.folder / "up").exists)
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=DEADLINE)
    assert process.returncode == 0
    assert not batch.was_requeued


def test_preflight_comes_first_and_a_failed_one_ends_the_job(batch: Batch) -> None:
    assert batch.run(preflight=True)[0] == 0
    assert batch.steps == ["preflight", "node"]
    batch.scheduler.set_step("preflight", "exit 1")
    code, output = batch.run(preflight=True)
    assert (code, batch.steps) == (1, ["preflight", "node", "preflight"])
    assert "preflight.json" in output
    assert not batch.was_requeued


def test_bad_nodes_are_left_out_of_the_next_turn(batch: Batch) -> None:
    batch.scheduler.set_step("preflight", "printf 'node3\\nnode5\\n' >\"$RUN/bad_nodes.txt\"; exit 1")
    batch.scheduler.set_job(excluded="node1")
    assert batch.run(preflight=True, exclude_bad_nodes=True)[0] == 75
    assert batch.steps == ["preflight"]
    changes = [call for call in batch.scheduler.calls("scontrol") if call[0] != "show"]
    assert changes == [["requeue", "7"], ["update", "jobid=7", "excnodelist=node1,node3,node5"]]
    assert "node3,node5" in batch.events()[-1]["cause"]


def test_asked_to_stop_during_the_preflight(batch: Batch) -> None:
    batch.scheduler.set_step("preflight", "trap '' USR1; touch \"$RUN/up\"; sleep 0.3; exit 0")
    process = batch.start(preflight=True)
    wait_for((batch.folder / "up").exists)
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=DEADLINE)
    assert process.returncode == 75
    assert batch.steps == ["preflight"]
    assert batch.was_requeued


def test_a_requeue_by_slurm_itself_is_noted_once(batch: Batch) -> None:
    events = batch.folder / "events.jsonl"
    events.write_text('{"event": "started", "time": 1.0, "step": 3}\n')
    batch.run(restarts=1)
    noted = batch.events()[-1]
    assert (noted["event"], noted["requeue"]) == ("requeued", 1)
    assert "SLURM" in noted["cause"]
    batch.run(restarts=1)
    assert len(batch.events()) == 2


def test_array_tasks_find_their_folders(batch: Batch, tmp_path: Path) -> None:
    runs = [tmp_path / f"sweep run-{place:04d}" for place in range(12)]
    for run in runs:
        run.mkdir()
    batch.tasks = tuple(runs)
    (batch.folder / "tasks.txt").write_text("".join(f"{run}\n" for run in runs))
    batch.scheduler.set_step("node", 'pwd >"$RUN/seen"')
    for task in (0, 9, 11):
        assert batch.run(task=task)[0] == 0
    assert [run.name for run in runs if (run / "seen").exists()] == [
        runs[0].name,
        runs[9].name,
        runs[11].name,
    ]


def test_a_folder_that_the_node_does_not_see(batch: Batch) -> None:
    batch.folder.rmdir()
    code, output = batch.run()
    assert code == 2
    assert "file system of all nodes" in output
    assert batch.steps == []


def test_what_srun_is_given(batch: Batch) -> None:
    batch.run(elastic={"min_nodes": 1}, nodes=2, container={"image": "a b.sif", "runtime": "apptainer"})
    (arguments,) = batch.scheduler.calls("srun")
    assert arguments[:3] == ["--kill-on-bad-exit=0", "--wait=0", "--no-kill"]
    assert arguments[arguments.index("apptainer") :][:2] == ["apptainer", "exec"]
    assert arguments[-7:] == ["a b.sif", "python", "-m", "llmscale", "cluster", "node", str(batch.folder)]


def test_setup_and_environment_reach_the_agents(batch: Batch) -> None:
    batch.scheduler.set_step("node", 'printf "%s|%s|%s" "$ODD" "$FROM_SETUP" "$PYTHONPATH" >"$RUN/seen"')
    odd = 'it\'s $HOME `date` "x"\nsecond line'
    batch.run(environment={"ODD": odd}, setup=["export FROM_SETUP=$((40 + 2)) $UNSET_BEFORE"])
    seen = (batch.folder / "seen").read_text()
    assert re.fullmatch(re.escape(f"{odd}|42|{batch.folder}/code") + "(:.*)?", seen)
