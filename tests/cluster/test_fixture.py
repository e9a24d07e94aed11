"""The test cluster itself: jobs run on nodes of their own, and nodes break as real ones do."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.cluster.slurm import packages
from tests.cluster.slurm.cluster import SlurmCluster
from tests.cluster.waiting import wait_until

pytestmark = pytest.mark.cluster


def script(folder: Path, *lines: str) -> str:
    path = folder / "job.sh"
    path.write_text("\n".join(["#!/bin/bash", *lines, ""]))
    return str(path)


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure that says what to install, never a skip."""
    monkeypatch.setattr(packages, "search_path", lambda: str(tmp_path))
    with pytest.raises(RuntimeError, match="apt-get install .* munge .* slurmctld slurmd"):
        SlurmCluster(tmp_path / "none").__enter__()


def test_a_step_runs_on_two_nodes(cluster: SlurmCluster, tmp_path: Path) -> None:
    output = tmp_path / "hello"
    job = cluster.sbatch("--nodes=2", f"--output={output}", script(tmp_path, "srun hostname"))
    cluster.wait_for(job, "COMPLETED", seconds=30)
    assert sorted(output.read_text().split()) == ["node1", "node2"]
    assert cluster.wait_for_accounts(job, "COMPLETED") == [[str(job), "COMPLETED", "0:0"]]


def test_requeue(cluster: SlurmCluster, tmp_path: Path) -> None:
    counts = tmp_path / "counts"
    lines = (f"echo ${{SLURM_RESTART_COUNT:-0}} >> {counts}", "exec sleep 600")
    job = cluster.sbatch("--output=/dev/null", script(tmp_path, *lines))
    wait_until(lambda: counts.exists() and counts.read_text() == "0\n", "the job has begun", 30)
    cluster.run("scontrol", "requeue", str(job))
    wait_until(lambda: counts.read_text() == "0\n1\n", "the job has begun again", 30)
    assert cluster.restarts(job) == 1


@pytest.mark.soak
def test_job_of_a_crashed_node_runs_elsewhere(cluster: SlurmCluster, tmp_path: Path) -> None:
    step = f"srun sh -c 'touch {tmp_path}/$(hostname); exec sleep 600'"
    job = cluster.sbatch("--nodes=2", "--output=/dev/null", script(tmp_path, step))
    wait_until(lambda: (tmp_path / "node1").exists() and (tmp_path / "node2").exists(), "the step runs", 30)
    cluster.nodes["node2"].crash()
    second = cluster.wait_for_restart(job, 1, seconds=60)["nodes"]
    assert "node2" not in second
    assert cluster.node_states()["node2"] == "DOWN*"


@pytest.mark.soak
def test_a_cut_node_lives_on(cluster: SlurmCluster, tmp_path: Path) -> None:
    node = cluster.nodes["node1"]
    beats = tmp_path / "beats"
    job = cluster.sbatch(
        "--nodelist=node1",
        "--no-requeue",
        "--output=/dev/null",
        script(tmp_path, f"while :; do echo >> {beats}; sleep 0.1; done"),
    )
    wait_until(beats.exists, "the job has begun", 30)
    node.cut()
    cluster.wait_for(job, "NODE_FAIL", seconds=60)
    seen = beats.stat().st_size
    wait_until(lambda: beats.stat().st_size > seen + 5, "the job goes on where nobody can reach it", 10)
    node.heal()
    wait_until(lambda: not node.pids("job"), "slurmd has heard and ended the job", 60)


HOLDER = """
import sys
from pathlib import Path
from tests.cluster.slurm.cluster import SlurmCluster
from tests.cluster.slurm.configuration import ClusterShape
with SlurmCluster(Path(sys.argv[1]), ClusterShape(nodes=1, accounting=False)) as cluster:
    cluster.sbatch("--output=/dev/null", "--wrap=sleep 600")
    print("up", flush=True)
    sys.stdin.read()
"""


def test_nothing_outlives_a_killed_session(repository: Path, tmp_path: Path) -> None:
    session = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "short")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=repository,
        env={**os.environ, "PYTHONPATH": str(repository)},
    )
    assert session.stdout and session.stdout.readline() == b"up\n"
    family = psutil.Process(session.pid).children(recursive=True)
    daemons = [process for process in psutil.process_iter() if str(tmp_path) in _mounts(process)]
    assert {"slurmctld", "slurmd", "munged"} <= {process.name() for process in daemons}
    session.send_signal(signal.SIGKILL)
    session.wait()
    gone, alive = psutil.wait_procs(family + daemons, timeout=10)
    assert gone and not alive


def _mounts(process: psutil.Process) -> str:
    """The mounts that a process sees: those of the cluster in `tmp_path` have its folder at /etc/slurm."""
    try:
        return Path(f"/proc/{process.pid}/mountinfo").read_text()
    except OSError:
        return ""
