"""The programs of a SLURM cluster, and the Debian packages that bring them."""

import os
import shutil
from pathlib import Path

PROGRAMS = {
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "sbatch": "slurm-client",
    "munged": "munge",
    "ip": "iproute2",
    "pgrep": "procps",
    "nsenter": "util-linux",
    "unshare": "util-linux",
}
ACCOUNTING_PROGRAMS = {
    "slurmdbd": "slurmdbd",
    "mariadbd": "mariadb-server",
    "mariadb-install-db": "mariadb-server",
}
ACCOUNTING_PLUGIN = "accounting_storage_mysql.so"

SYSTEM_FOLDERS = ("/usr/sbin", "/sbin")
"""Where daemons are; not on every user's PATH."""


def search_path() -> str:
    return os.pathsep.join([os.environ.get("PATH", os.defpath), *SYSTEM_FOLDERS])


def missing_packages(accounting: bool = True) -> list[str]:
    """Debian packages to install before a cluster can be started."""
    programs = PROGRAMS | (ACCOUNTING_PROGRAMS if accounting else {})
    missing = {
        package for program, package in programs.items() if not shutil.which(program, path=search_path())
    }
    if accounting and not any(Path("/usr/lib").glob(f"*/slurm*/{ACCOUNTING_PLUGIN}")):
        missing.add("slurm-wlm-mysql-plugin")
    return sorted(missing)


def require_packages(accounting: bool = True) -> None:
    """Raises:
    RuntimeError: with the line that installs what is missing.
    """
    missing = missing_packages(accounting)
    if missing:
        raise RuntimeError(
            "the cluster tests need a real SLURM; as root:\n"
            f"  apt-get install -y --no-install-recommends {' '.join(missing)}"
        )
