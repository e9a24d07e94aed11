"""The daemons of the login node: munged, the accounting database, slurmctld."""

import secrets
from collections.abc import Sequence
from pathlib import Path

from tests.cluster.slurm.configuration import DATABASE, SQL_PORT
from tests.cluster.slurm.machine import Machine
from tests.cluster.waiting import wait_until

SQL_SOCKET = "/run/mysql.sock"
SQL_ARGUMENTS = ("--no-defaults", f"--socket={SQL_SOCKET}", "--user=root")


def start_munge(login: Machine, folder: Path) -> None:
    """Who is who in the cluster; its socket lies in /run, which all machines share."""
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))
    login.run("mkdir", "-p", "/run/munge")
    login.run(
        "munged",
        "--force",
        f"--key-file={key}",
        "--pid-file=/run/munge/munged.pid",
        "--seed-file=/run/munge/munged.seed",
        f"--log-file={folder}/logs/munged.log",
    )


def start_accounting(login: Machine, folder: Path) -> None:
    data = folder / "database"
    login.run(
        "mariadb-install-db",
        "--no-defaults",
        "--force",
        "--user=root",
        f"--datadir={data}",
        "--auth-root-authentication-method=normal",
        "--skip-test-db",
    )
    server = (
        "mariadbd --no-defaults --user=root --bind-address=127.0.0.1 --skip-log-bin "
        "--innodb-buffer-pool-size=64M --innodb-log-file-size=8M --innodb-flush-log-at-trx-commit=0 "
        f"--datadir={data} --port={SQL_PORT} --socket={SQL_SOCKET} --pid-file=/run/mariadbd.pid"
    )
    login.run("sh", "-c", f"setsid {server} </dev/null >{folder}/logs/mariadbd.log 2>&1 &")
    wait_until(
        lambda: login.run("mariadb-admin", *SQL_ARGUMENTS, "ping", check=False).returncode == 0,
        f"the accounting database is up, see {folder}/logs/mariadbd.log",
        60,
    )
    login.run("mariadb", *SQL_ARGUMENTS, input=DATABASE)
    login.run("slurmdbd")
    wait_until(
        lambda: login.run("sacctmgr", "--noheader", "list", "cluster", check=False).returncode == 0,
        f"slurmdbd answers, see {folder}/logs/slurmdbd.log",
        60,
    )
    login.run("sacctmgr", "--immediate", "add", "cluster", "test")


def start_controller(login: Machine, folder: Path) -> None:
    login.run("slurmctld")
    wait_until(
        lambda: "is UP" in login.run("scontrol", "ping", check=False).stdout,
        f"slurmctld answers, see {folder}/logs/slurmctld.log",
        30,
    )


def start_slurmds(login: Machine, names: Sequence[str]) -> None:
    """A slurmd for each of `names`, all on the login node."""
    login.run("xargs", "--max-args=1", "--max-procs=4", "slurmd", "-N", input="\n".join(names), seconds=300)


def kill_controller(login: Machine) -> None:
    """As a crash of its machine would: nothing more is written down."""
    pid = login.run("cat", "/run/slurmctld.pid").stdout.strip()
    login.run("kill", "-KILL", pid)
    wait_until(
        lambda: login.run("kill", "-0", pid, check=False).returncode != 0, f"slurmctld {pid} is gone", 10
    )
