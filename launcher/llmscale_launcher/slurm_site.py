"""What a SLURM says of itself: its configuration, partitions and nodes, read with its own programs."""

import getpass
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field

ANSWER_SECONDS = 60.0
UNSET = ("(null)", "N/A", "NONE", "None", "")
NODE_COLUMNS = ("NodeList", "Partition", "CPUs", "Memory", "Gres", "Features", "StateLong")
_GPUS = re.compile(r"gpu:(?:([^:,()]+):)?(\d+)")
_LEADING_SECONDS = re.compile(r"^(\d+)")
CREDENTIAL_HINT = " (MUNGE: is the key the controller's, and do the clocks of both machines agree?)"
UNUSABLE = ("down", "drain", "fail", "unknown", "maint", "not_responding", "no_respond")


class SiteError(Exception):
    """SLURM is not here, or does not answer. Carries its own words."""


@dataclass(frozen=True)
class Node:
    name: str
    cpus: int
    memory: int
    """In MiB, as slurm.conf has it."""
    gpus: int
    gpu_type: str | None
    features: tuple[str, ...]
    state: str

    @property
    def is_usable(self) -> bool:
        return not any(word in self.state.lower() for word in UNUSABLE) and not self.state.endswith("*")


@dataclass(frozen=True)
class Partition:
    """A queue: `scontrol show partition` and its nodes."""

    name: str
    settings: dict[str, str]
    nodes: tuple[Node, ...]

    @property
    def is_default(self) -> bool:
        return self.settings.get("Default") == "YES"

    @property
    def max_minutes(self) -> float | None:
        """Longest job; None without a limit."""
        return minutes_of(self.settings.get("MaxTime", "UNLIMITED"))

    @property
    def grace_seconds(self) -> int:
        return int(self.settings.get("GraceTime", "0"))

    @property
    def tier(self) -> int:
        return int(self.settings.get("PriorityTier", "1"))

    @property
    def smallest(self) -> Node | None:
        """The node that every job must fit on: as few GPUs, cores and MiB as any has."""
        return min(self.nodes, key=lambda node: (node.gpus, node.cpus, node.memory), default=None)


@dataclass(frozen=True)
class Site:
    """A SLURM cluster as its user sees it."""

    settings: dict[str, str]
    """`scontrol show config`."""
    partitions: tuple[Partition, ...]
    accounts: tuple[str, ...] = ()
    """That this user may charge; empty where SLURM keeps no accounts, or does not say."""
    problems: tuple[str, ...] = field(default=())
    """What could not be asked."""

    @property
    def name(self) -> str:
        return self.settings.get("ClusterName", "?")

    @property
    def version(self) -> str:
        return self.settings.get("SLURM_VERSION", "?")

    def seconds(self, key: str) -> int | None:
        """A setting such as `30 sec`; None where it is not set."""
        found = _LEADING_SECONDS.match(self.settings.get(key, ""))
        return int(found[1]) if found else None

    def words(self, key: str) -> list[str]:
        """A setting with commas."""
        text = self.settings.get(key, "")
        return [] if text in UNSET else text.split(",")


def read_site() -> Site:
    """Ask the SLURM of this machine.

    Raises:
        SiteError: it is not installed here, or slurmctld does not answer.
    """
    missing = [program for program in ("scontrol", "sinfo", "sbatch") if shutil.which(program) is None]
    if missing:
        raise SiteError(f"{', '.join(missing)} not found on PATH: run this on a login node of the cluster")
    settings = parse_settings(_ask("scontrol", "show", "config"))
    columns = ",".join(f"{name}:|" for name in NODE_COLUMNS)
    nodes = parse_nodes(_ask("sinfo", "--Node", "--all", "--noheader", "-O", columns))
    partitions = parse_partitions(_ask("scontrol", "show", "partition", "--oneliner"), nodes)
    accounts: tuple[str, ...] = ()
    problems: list[str] = []
    if settings.get("AccountingStorageType") not in (None, "accounting_storage/none", *UNSET):
        try:
            accounts = parse_accounts(_ask_accounts())
        except SiteError as error:
            problems.append(f"accounts are not known: {error}")
    return Site(settings, partitions, accounts, tuple(problems))


def parse_settings(text: str) -> dict[str, str]:
    """`Key = value` lines."""
    pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def parse_nodes(text: str) -> dict[str, list[Node]]:
    """Nodes by partition."""
    nodes: dict[str, list[Node]] = {}
    for line in text.splitlines():
        name, partition, cpus, memory, gres, features, state = line.split("|")[: len(NODE_COLUMNS)]
        gpus = _GPUS.findall(gres)
        node = Node(
            name=name,
            cpus=int(cpus),
            memory=int(memory),
            gpus=sum(int(count) for _, count in gpus),
            gpu_type=gpus[0][0] or None if gpus else None,
            features=() if features in UNSET else tuple(features.split(",")),
            state=state,
        )
        nodes.setdefault(partition.rstrip("*"), []).append(node)
    return nodes


def parse_partitions(text: str, nodes: dict[str, list[Node]]) -> tuple[Partition, ...]:
    """One partition a line, `Key=value` with blanks in between."""
    partitions: list[Partition] = []
    for line in text.splitlines():
        settings = dict(word.split("=", 1) for word in line.split() if "=" in word)
        if "PartitionName" in settings:
            name = settings["PartitionName"]
            partitions.append(Partition(name, settings, tuple(nodes.get(name, ()))))
    return tuple(partitions)


def parse_accounts(text: str) -> tuple[str, ...]:
    """Accounts of `sacctmgr show assoc`, each once."""
    return tuple(dict.fromkeys(line.split("|")[0] for line in text.splitlines() if line.strip("|")))


def minutes_of(time: str) -> float | None:
    """SLURM's `D-HH:MM:SS`, `HH:MM:SS` or `MM:SS` in minutes; None for UNLIMITED."""
    if time in ("UNLIMITED", "INFINITE", *UNSET):
        return None
    days, dash, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:
        hours, minutes, seconds = [*parts, 0, 0][:3]
        return int(days) * 1440 + hours * 60 + minutes + seconds / 60
    if len(parts) == 1:
        return float(parts[0])
    hours, minutes, seconds = ([0, *parts] if len(parts) == 2 else parts)[:3]
    return hours * 60 + minutes + seconds / 60


def _ask_accounts() -> str:
    user = getpass.getuser()
    return _ask("sacctmgr", "--noheader", "--parsable2", "show", "assoc", f"user={user}", "format=account")


def _ask(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False)
    except OSError as error:
        raise SiteError(f"{command[0]}: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise SiteError(f"{command[0]} did not answer within {ANSWER_SECONDS:.0f} s") from None
    if done.returncode:
        said: Sequence[str] = (done.stderr or done.stdout).strip().splitlines() or ["no answer"]
        hint = CREDENTIAL_HINT if re.search("authentication|credential", said[0], re.IGNORECASE) else ""
        raise SiteError(f"{command[0]}: {said[0]}{hint}")
    return done.stdout
