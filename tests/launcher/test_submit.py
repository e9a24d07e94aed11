"""`llmscale submit`: what is checked, what is frozen, what SLURM is told, what is left when it refuses."""

import json
import os
import resource
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from llmscale_launcher.job import JobRecord, read_job, write_job

from llmscale.commands.submit import submit
from llmscale.commands.train import run_training
from llmscale.config.load import load_config, read_resolved
from llmscale.config.problems import InputError
from llmscale.run.endings import CANCELLED_NAME
from llmscale.runtime.events import read_events
from tests.launcher.fake_backend import FakeBackend
from tests.launcher.fake_scheduler import FakeScheduler

TINY, LARGE = Path("tiny.yaml"), Path("large.yaml")


HEAVY = ("torch", "ray", "deepspeed", "megatron", "transformers", "datasets")


def problems_of(*overrides: str, config: Path = TINY) -> dict[str, str]:
    with pytest.raises(InputError) as caught:
        submit(config, list(overrides))
    return {problem.key: problem.message for problem in caught.value.problems}


def test_a_run_folder_is_frozen_and_handed_over(place: Path, scheduler: FakeScheduler) -> None:
    submit(TINY, ["run.name=first"])
    run = place / "runs" / "first"
    assert scheduler.calls("sbatch") == [["--parsable", str(run / "job.sbatch")]]
    record = read_job(run)
    assert record == JobRecord("slurm", "1", None, record.submitted if record else 0.0)
    assert read_resolved(run / "config.yaml") == load_config(TINY, ["run.name=first"])
    assert stat.S_IMODE((run / ".token").stat().st_mode) == 0o600
    assert len(bytes.fromhex((run / ".token").read_text())) == 32
    assert [event.kind for event in read_events(run)] == ["submitted"]
    assert (run / "logs").is_dir()


def test_what_is_printed_says_where_to_look(
    place: Path, scheduler: FakeScheduler, capsys: pytest.CaptureFixture[str]
) -> None:
    submit(TINY, ["run.name=first"])
    printed = capsys.readouterr().out
    for part in ("first", "1", "llmscale status first", "llmscale logs first -f", "llmscale cancel first"):
        assert part in printed


def test_the_job_runs_from_the_copy_of_the_code(
    place: Path, scheduler: FakeScheduler, repository: Path
) -> None:
    submit(TINY, ["run.name=first"])
    code = place / "runs" / "first" / "code"
    program = (
        "import llmscale.config.presets as p, llmscale_launcher.template as t, llmscale_kernels as k\n"
        "print(p.configs_folder(), t.templates_folder(), *k.__path__, sep='\\n')\n"
        "p.load_preset('llama3_8b'); assert (t.templates_folder() / 'train.sbatch').is_file()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(code)},
        cwd=place,
        capture_output=True,
        text=True,
        check=True,
    )
    assert [Path(line).is_relative_to(code) for line in done.stdout.split()] == [True] * 3
    own = {path.relative_to(repository) for path in (repository / "llmscale").rglob("*.py")}
    assert own == {path.relative_to(code) for path in (code / "llmscale").rglob("*.py")}
    git = json.loads((place / "runs" / "first" / "git.json").read_text())
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=repository, capture_output=True, text=True, check=False
    )
    assert git["commit"] == (head.stdout.strip() if head.returncode == 0 else None)


def test_a_dry_run_prints_the_script_and_writes_nothing(
    place: Path, scheduler: FakeScheduler, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(place.rglob("*"))
    submit(TINY, ["run.name=first", "cluster.partition=gpu"], dry_run=True)
    printed = capsys.readouterr().out
    assert "#SBATCH --partition=gpu\n" in printed
    assert "2 × 2 = 4 ranks · tensor 1 × pipeline 1 × data 4" in printed
    assert sorted(place.rglob("*")) == before
    assert scheduler.calls("sbatch") == []


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "COMPLETING", "REQUEUED"])
def test_a_live_run_is_not_submitted_twice(place: Path, scheduler: FakeScheduler, state: str) -> None:
    submit(TINY)
    scheduler.set_state("1", state)
    assert "submitted already: slurm job 1" in problems_of()["run.name"]
    assert len(scheduler.calls("sbatch")) == 1


def test_nor_one_whose_scheduler_does_not_answer(place: Path, scheduler: FakeScheduler) -> None:
    submit(TINY)
    scheduler.refuse("squeue", "slurm_load_jobs error: Unable to contact slurm controller")
    assert "may still run" in problems_of()["run.name"]


@pytest.mark.parametrize("state", ["COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "gone"])
def test_a_run_that_ended_goes_on_in_its_folder(place: Path, scheduler: FakeScheduler, state: str) -> None:
    submit(TINY)
    run = place / "runs" / "tiny"
    token = (run / ".token").read_text()
    (run / CANCELLED_NAME).touch()
    (run / "code" / "left over").touch()
    if state != "gone":
        scheduler.set_state("1", state)
    submit(TINY, ["train.stop_at=5"])
    record = read_job(run)
    assert record is not None and record.id == "2"
    assert (run / ".token").read_text() == token
    assert read_resolved(run / "config.yaml").train.stop_at == 5
    assert read_resolved(run / "config-1.yaml").train.stop_at is None
    assert not (run / CANCELLED_NAME).exists()
    assert not (run / "code" / "left over").exists()
    assert [path.name for path in run.glob(".code*")] == []


def test_everything_wrong_is_said_at_once(place: Path, scheduler: FakeScheduler) -> None:
    (scheduler.programs / "sbatch").unlink()
    found = problems_of(
        "data.train=[nowhere]",
        "checkpoint.resume=required",
        "train.init_from=nothing",
        "run.root=tiny.yaml",
        "cluster.device=H1000",
    )
    assert set(found) >= {"data.train.0.path", "checkpoint.resume", "run.root", "cluster.device"}
    assert not (place / "runs").exists()


def test_slurm_that_is_not_there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(place))
    assert "login node" in problems_of()["cluster.kind"]


@pytest.mark.parametrize("root", ["it's", 'say "x"', "100%", "back\\slash"])
def test_folders_that_sbatch_would_misread(place: Path, scheduler: FakeScheduler, root: str) -> None:
    assert "choose another folder" in problems_of(f"run.root={json.dumps(root)}")["run.root"]


@pytest.mark.usefixtures("place", "scheduler")
def test_what_does_not_fit_is_refused_with_what_would() -> None:
    message = problems_of("zero=1", config=LARGE)["cluster.device"]
    assert "usable; what would fit: " in message
    assert "zero.stage=3" in message


def test_memory_of_a_cpu_node_is_what_is_asked_for(place: Path, scheduler: FakeScheduler) -> None:
    assert "needs" in problems_of("cluster.device=cpu", "cluster.memory=1G")["cluster.device"]
    submit(TINY, ["cluster.device=cpu", "cluster.memory=64G"])


def test_a_refusal_of_sbatch_is_told_and_leaves_no_job(
    place: Path, scheduler: FakeScheduler, capsys: pytest.CaptureFixture[str]
) -> None:
    scheduler.refuse("sbatch", "sbatch: error: invalid partition specified: gpu")
    with pytest.raises(typer.Exit) as caught:
        submit(TINY)
    assert caught.value.exit_code == 1
    assert "invalid partition specified: gpu" in capsys.readouterr().err.replace("\n", " ")
    run = place / "runs" / "tiny"
    assert read_job(run) is None
    assert [event.kind for event in read_events(run)] == ["submitted", "failed"]
    scheduler.accept("sbatch")
    submit(TINY)
    assert read_job(run) is not None


def test_jobs_before_a_refused_one_are_taken_back(place: Path, fake_backend: type[FakeBackend]) -> None:
    fake_backend.refuses_after = 2
    with pytest.raises(typer.Exit):
        submit(TINY, ["cluster=local", "cluster.nodes=1", "sweep.train.seed=[1, 2, 3]"])
    assert fake_backend.cancelled == ["fake-1", "fake-2"]
    assert not (place / "runs" / "tiny" / "sweep.json").exists()


def run_main(*arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    program = (
        "import sys, llmscale.cli\n"
        f"sys.argv = ['llmscale', *{list(arguments)!r}]\n"
        "try:\n    llmscale.cli.main()\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        f"print('LOADED', *[name for name in {HEAVY!r} if name in sys.modules])"
    )
    return subprocess.run(
        [sys.executable, "-c", program], cwd=cwd, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("options", [("--dry-run",), ()])
def test_1024_nodes_in_two_seconds_without_torch(
    place: Path, scheduler: FakeScheduler, options: tuple[str, ...]
) -> None:
    """Seconds of the processor, which do not depend on what else the machine does."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run_main("submit", "large.yaml", *options, cwd=place)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "LOADED"
    assert after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime < 2
    assert len(scheduler.calls("sbatch")) == (0 if options else 1)


def test_train_refuses_a_sweep(place: Path) -> None:
    with pytest.raises(InputError, match="llmscale submit"):
        run_training(load_config(TINY, ["sweep.train.seed=[1, 2]", "cluster=local", "cluster.nodes=1"]))


def test_a_record_keeps_every_field(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"cluster": {"address": "http://x"}, "depends_on": ["afterok:3"]}
    record = JobRecord("ray", "raysubmit_1", 4, 2.5, **fields)
    write_job(tmp_path, record)
    assert read_job(tmp_path) == record
    assert record.key == "raysubmit_1_4"
