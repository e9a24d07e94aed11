"""The folder of a run: made, locked and described before any rank starts. No torch."""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from llmscale.config.load import read_resolved, write_resolved
from llmscale.config.problems import InputError, Problem
from llmscale.config.schema import Config

CONFIG_NAME = "config.yaml"
AGENT_NAME = "agent.json"
LOCK_NAME = ".lock"

FIXED = ("task", "rlhf.algorithm", "model", "train.sequence_length", "train.seed", "data.train", "data.split")
"""What a checkpoint's weights and position stand on: changed, a resume would go on with something else."""


@dataclass(frozen=True)
class AgentRecord:
    """The agent of a run, so that `status` and `cancel` find it."""

    pid: int
    created: float
    """When the process was created, which tells it from a later one of the same pid."""
    host: str

    def is_alive(self) -> bool:
        """Whether it runs on this machine."""
        if self.host != socket.gethostname():
            return False
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.created) < 1
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


def check_folder(folder: Path) -> list[Problem]:
    """What stands against writing to `folder`, which need not be there yet."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        return [Problem("run.root", folder, f"{nearest} is no folder; choose another run.root")]
    if not os.access(nearest, os.W_OK | os.X_OK):
        return [Problem("run.root", folder, f"{nearest} cannot be written to; choose another run.root")]
    return []


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make `folder` and hold it for this process: a run has one coordinator at a time.

    Raises:
        InputError: the folder cannot be written to, or another process trains in it.
    """
    try:
        for made in (folder, folder / "logs", folder / "checkpoints"):
            made.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        message = f"cannot be written to ({error.strerror}); choose another run.root"
        raise InputError([Problem("run.root", folder, message)]) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        agent = read_agent(folder)
        who = f"process {agent.pid} on {agent.host}" if agent else "another process"
        message = f"{who} trains in {folder}; choose another run.name, or `llmscale cancel {folder.name}`"
        raise InputError([Problem("run.name", folder.name, message)]) from None
    try:
        write_agent(folder)
        yield
    finally:
        os.close(descriptor)


def write_agent(folder: Path) -> None:
    record = AgentRecord(os.getpid(), psutil.Process().create_time(), socket.gethostname())
    temporary = folder / f".{AGENT_NAME}.{record.pid}"
    temporary.write_text(json.dumps(vars(record)))
    temporary.replace(folder / AGENT_NAME)


def read_agent(folder: Path) -> AgentRecord | None:
    path = folder / AGENT_NAME
    return AgentRecord(**json.loads(path.read_text())) if path.exists() else None


def check_resume(config: Config, folder: Path, committed_step: int | None) -> list[Problem]:
    """What stands against going on with `config` from the checkpoint of `committed_step`."""
    if committed_step is None:
        if config.checkpoint.resume == "required":
            return [Problem("checkpoint.resume", "required", f"{folder} has no checkpoint to go on from")]
        return []
    if config.checkpoint.resume == "never" or not (folder / CONFIG_NAME).exists():
        return []
    before = read_resolved(folder / CONFIG_NAME)
    at = f"in the checkpoint of step {committed_step}"
    problems = [
        Problem(
            key,
            _brief(_value(config, key)),
            f"is {_brief(_value(before, key))} {at}; set it back, or start a new run.name with "
            f"train.init_from={folder}",
        )
        for key in FIXED
        if _value(config, key) != _value(before, key)
    ]
    penalty, known = config.optimizer.distance_penalty, before.optimizer.distance_penalty
    if bool(penalty) != bool(known):
        message = f"is {known} {at}, and with it the starting weights come and go; set it back, or"
        problems.append(Problem("optimizer.distance_penalty", penalty, f"{message} start a new run.name"))
    return problems


def write_config(config: Config, folder: Path) -> None:
    """Write the resolved config; one that differs from it is kept as `config-N.yaml`."""
    path = folder / CONFIG_NAME
    if path.exists():
        if read_resolved(path) == config:
            return
        number = 1
        while (folder / f"config-{number}.yaml").exists():
            number += 1
        os.link(path, folder / f"config-{number}.yaml")
    write_resolved(config, path)


def find_run(run: str, root: Path) -> Path:
    """The folder of a run that is named by its path or by its name under `root`.

    Raises:
        InputError: there is no such run.
    """
    for folder in (Path(run), root / run):
        if (folder / CONFIG_NAME).is_file():
            return folder
    known = ", ".join(sorted(path.name for path in run_folders(root))) or "none"
    raise InputError([Problem("RUN", run, f"no such run; under {root} there are: {known}")])


def run_folders(root: Path) -> list[Path]:
    """All runs under `root`, the one that was touched last first."""
    found = [path.parent for path in root.glob(f"*/{CONFIG_NAME}")]
    return sorted(found, key=lambda folder: (folder / CONFIG_NAME).stat().st_mtime, reverse=True)


def _value(config: Config, key: str) -> object:
    value: object = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _brief(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
