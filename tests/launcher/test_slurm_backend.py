"""What is asked of SLURM's programs, and how their answers are read."""

from pathlib import Path

import pytest
from llmscale_launcher.backends.base import Earlier, JobRequest, SubmitError
from llmscale_launcher.backends.slurm import SlurmBackend
from llmscale_launcher.job import JobRecord, JobState

from llmscale.config.schema import Config
from tests.launcher.fake_scheduler import FakeScheduler

CONFIG = Config.model_validate({"cluster": {"kind": "slurm"}})
BACKEND = SlurmBackend()


def job(number: int, index: int | None = None) -> JobRecord:
    return JobRecord("slurm", str(number), index, 0.0)


def test_one_question_for_all_jobs(scheduler: FakeScheduler) -> None:
    scheduler.set_state("1", "RUNNING", nodes="node[1-2]")
    scheduler.set_state("2", "PENDING", reason="Resources")
    scheduler.set_state("3", "PENDING", reason="BeginTime", restarts=2)
    scheduler.set_state("5_0", "COMPLETED", nodes="node1")
    scheduler.set_state("5_1", "FAILED", reason="NonZeroExitCode", nodes="node2", exit_code=3)
    states = BACKEND.states([job(1), job(2), job(3), job(4), job(5, 0), job(5, 1), job(5, 2)])
    assert states == {
        "1": JobState("running", nodes="node[1-2]"),
        "2": JobState("pending", "Resources"),
        "3": JobState("requeued", "BeginTime"),
        "4": JobState("ended"),
        "5_0": JobState("ended", "COMPLETED", "node1", 0),
        "5_1": JobState("ended", "FAILED (NonZeroExitCode)", "node2", 3),
        "5_2": JobState("ended"),
    }
    ((*_, jobs, _, _),) = scheduler.calls("squeue")
    assert jobs == "--jobs=1,2,3,4,5"


def test_no_jobs_no_question(scheduler: FakeScheduler) -> None:
    assert BACKEND.states([]) == {}
    assert scheduler.calls("squeue") == []


def test_a_job_that_squeue_has_forgotten(scheduler: FakeScheduler) -> None:
    assert BACKEND.states([job(9)]) == {"9": JobState("ended")}


def test_a_slurm_that_does_not_answer(scheduler: FakeScheduler) -> None:
    scheduler.refuse("squeue", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
    assert BACKEND.states([job(1)])["1"].state == "unknown"


@pytest.mark.parametrize(
    ("text", "code"), [("0", 0), ("768", 3), ("9", 137), ("3:0", 3), ("0:9", 137), ("0:0", 0), ("?", None)]
)
def test_exit_codes_of_all_versions(scheduler: FakeScheduler, text: str, code: int | None) -> None:
    (scheduler.folder / "jobs" / "1").write_text(f"1|FAILED|None|node1|{text}|0|\n")
    assert BACKEND.states([job(1)])["1"].exit_code == code


def test_cancel_lets_a_running_job_save_and_keeps_it_from_coming_back(scheduler: FakeScheduler) -> None:
    scheduler.set_state("1", "RUNNING")
    scheduler.set_state("5_3", "RUNNING")
    BACKEND.cancel(job(1))
    BACKEND.cancel(job(5, 3))
    assert scheduler.calls("scontrol") == [
        ["update", "jobid=1", "requeue=0"],
        ["update", "jobid=5_3", "requeue=0"],
    ]
    assert scheduler.calls("scancel") == [["--batch", "--signal=USR1", name] for name in ("1", "5_3")]


@pytest.mark.parametrize("restarts", [0, 1])
def test_cancel_of_a_waiting_job(scheduler: FakeScheduler, restarts: int) -> None:
    scheduler.set_state("1", "PENDING", restarts=restarts)
    BACKEND.cancel(job(1))
    assert scheduler.calls("scancel") == [["1"]]


def test_cancel_of_what_has_ended_and_of_what_may_not_be_cancelled(scheduler: FakeScheduler) -> None:
    BACKEND.cancel(job(1))
    assert scheduler.calls("scancel") == []
    scheduler.set_state("2", "PENDING")
    scheduler.refuse("scancel", "scancel: error: Kill job error on job id 2: Access/permission denied")
    with pytest.raises(SubmitError, match="Access/permission denied"):
        BACKEND.cancel(job(2))


def request(folder: Path, *after: Earlier) -> JobRequest:
    folder.mkdir(exist_ok=True)
    return JobRequest(CONFIG, folder, after=after)


def test_dependencies_are_asked_for(scheduler: FakeScheduler, tmp_path: Path) -> None:
    first = Earlier(tmp_path / "a", job(3))
    second = Earlier(tmp_path / "b", job(4, 2), "ended")
    record = BACKEND.submit(request(tmp_path / "run", first, second, Earlier(tmp_path / "c", None)))
    ((_, *options, script),) = scheduler.calls("sbatch")
    assert options == ["--dependency=afterok:3,afterany:4_2", "--kill-on-invalid-dep=yes"]
    assert Path(script).read_text() == BACKEND.script(request(tmp_path / "run"))
    assert record.depends_on == ["afterok:3", "afterany:4_2"]


def test_a_site_of_several_clusters(scheduler: FakeScheduler, tmp_path: Path) -> None:
    program = scheduler.programs / "sbatch"
    program.write_text("#!/bin/bash\necho '17;east'\n")
    record = BACKEND.submit(request(tmp_path / "run"))
    assert (record.id, record.cluster) == ("17", {"name": "east"})
