"""A real SLURM of several nodes on this machine, for tests: `with SlurmCluster(folder) as cluster:`."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.cluster.slurm import daemons
from tests.cluster.slurm.configuration import (
    CGROUP_CONF,
    LOGIN,
    ClusterShape,
    hosts,
    slurm_conf,
    slurmdbd_conf,
)
from tests.cluster.slurm.machine import Machine
from tests.cluster.slurm.node import Node
from tests.cluster.slurm.packages import require_packages
from tests.cluster.waiting import wait_until

Job = dict[str, Any]
"""A job as `squeue --json` tells; `job_state` is one word."""

ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY", "DEADLINE")
ACCOUNTS_SECONDS = 20


class SlurmCluster:
    """The login node, which carries slurmctld and the accounting, and the nodes.

    All machines see the same files; each has its own network, processes, host name, /dev/shm and /tmp/ray.
    Nothing is left when it ends, however it ends.
    """

    def __init__(self, folder: Path, shape: ClusterShape | None = None) -> None:
        self.folder = folder
        self.shape = shape or ClusterShape()
        self.nodes: dict[str, Node] = {}

    def __enter__(self) -> "SlurmCluster":
        require_packages(self.shape.accounting)
        self._write_files()
        self.login = Machine(LOGIN, self.folder)
        try:
            daemons.start_munge(self.login, self.folder)
            if self.shape.accounting:
                daemons.start_accounting(self.login, self.folder)
            self.start_controller()
            if self.shape.machines:
                self.nodes = {name: Node(name, self.login, self.folder) for name in self.shape.names}
            else:
                daemons.start_slurmds(self.login, self.shape.names)
            self.mend()
        except BaseException:
            self.login.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for node in self.nodes.values():
            node.switch_off()
        self.login.kill()

    def run(self, *command: str, check: bool = True, seconds: float = 60, **env: str) -> str:
        """What `command` writes on the login node."""
        return self.login.run(*command, env=env, check=check, seconds=seconds).stdout

    def sbatch(self, *arguments: str) -> int:
        """Submit; returns the job's id."""
        return int(self.run("sbatch", "--parsable", *arguments).split(";")[0])

    def squeue(self) -> list[Job]:
        """Every job, ended ones too, each array task on its own."""
        jobs = json.loads(self.run("squeue", "--json"))["jobs"]
        return [{**job, "job_state": _word(job["job_state"])} for job in jobs]

    def job(self, number: int) -> Job:
        return next(job for job in self.squeue() if job["job_id"] == number)

    def array_task(self, array: int, index: int) -> int:
        """Id of the job that a task of an array became; it has one of its own once it has begun.

        Raises:
            StopIteration: it has not.
        """
        own = (
            job["job_id"]
            for job in self.squeue()
            if (job["array_job_id"], job["array_task_id"]) == (array, index) and not job["array_task_string"]
        )
        return next(own)

    def restarts(self, number: int) -> int:
        """How often the job was requeued."""
        return int(self.job(number)["restart_cnt"])

    def wait_for(self, number: int, *states: str, seconds: float) -> Job:
        """The job, once it is in one of `states`.

        Raises:
            AssertionError: it ended otherwise, or the time is over.
        """

        def found() -> Job | None:
            job = self.job(number)
            assert job["job_state"] in states or job["job_state"] not in ENDED, (
                f"job {number} ended {job['job_state']}, awaited {states}\n{self.describe(number)}"
            )
            return job if job["job_state"] in states else None

        return self._waiting(number, found, f"job {number} is {' or '.join(states)}", seconds)

    def wait_for_restart(self, number: int, restarts: int, seconds: float) -> Job:
        """The job, once it runs for the `restarts`-th time after its first."""

        def found() -> Job | None:
            job = self.job(number)
            return job if job["job_state"] == "RUNNING" and job["restart_cnt"] >= restarts else None

        return self._waiting(number, found, f"job {number} runs after {restarts} requeues", seconds)

    def sacct(self, number: int, fields: Sequence[str] = ("JobID", "State", "ExitCode")) -> list[list[str]]:
        """Rows of the accounting about a job as a whole and each of its runs, without steps."""
        rows = self.run(
            *("sacct", "--noheader", "--parsable2", "--allocations", "--duplicates"),
            *(f"--jobs={number}", f"--format={','.join(fields)}"),
        )
        return [line.split("|") for line in rows.splitlines()]

    def wait_for_accounts(self, number: int, state: str) -> list[list[str]]:
        """Rows of the accounting, once the newest says `state`; it comes about a second late."""

        def found() -> list[list[str]] | None:
            rows = self.sacct(number)
            return rows if rows and rows[-1][1].split()[0] == state else None

        return wait_until(found, f"sacct says {state} of job {number}", ACCOUNTS_SECONDS)

    def start_controller(self) -> None:
        daemons.start_controller(self.login, self.folder)

    def kill_controller(self) -> None:
        daemons.kill_controller(self.login)

    def mend(self) -> None:
        """As at the beginning: no jobs, every node whole and idle."""
        self.run("scancel", "--user=root", "--signal=KILL", check=False)
        self.run("scancel", "--user=root", check=False)
        for node in self.nodes.values():
            node.start()
            node.heal()
            for other in self.nodes.values():
                node.heal_from(other)
        wait_until(lambda: not self.run("squeue", "--noheader"), "every job is gone", 60)
        for name, state in self.node_states().items():
            if state.startswith(("DOWN", "DRAIN")):
                self.run("scontrol", "update", f"nodename={name}", "state=resume", check=False)
        wait_until(lambda: set(self.node_states().values()) == {"IDLE"}, "every node is idle", 120)

    def node_states(self) -> dict[str, str]:
        """As `sinfo` writes them, in capitals; a `*` at the end: does not answer."""
        lines = self.run("sinfo", "--noheader", "--Node", "--format=%N %T").splitlines()
        return {name: state.upper() for name, state in (line.split() for line in lines)}

    def describe(self, number: int) -> str:
        """What SLURM knows about a job, for messages of failed tests."""
        return self.run("scontrol", "show", "job", str(number), check=False)

    def _waiting(self, number: int, condition: Callable[[], Job | None], what: str, seconds: float) -> Job:
        try:
            return wait_until(condition, what, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.describe(number)}") from None

    def _write_files(self) -> None:
        for name in ("etc", "logs", "state", "spool"):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "hosts").write_text(hosts(self.shape))
        (self.folder / "etc" / "slurm.conf").write_text(slurm_conf(self.shape, self.folder))
        (self.folder / "etc" / "cgroup.conf").write_text(CGROUP_CONF)
        if self.shape.accounting:
            secret = self.folder / "etc" / "slurmdbd.conf"
            secret.touch(mode=0o600)  # slurmdbd refuses one that others can read
            secret.write_text(slurmdbd_conf(self.folder))


def _word(state: str | list[str]) -> str:
    """The state of a job, which newer versions of SLURM write as a list."""
    return state if isinstance(state, str) else state[0]
