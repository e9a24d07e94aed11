"""What a run folder remembers of the job that was submitted for it, and how a scheduler says it stands."""

import json
import os
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

JOB_NAME = "job.json"


@dataclass(frozen=True)
class JobRecord:
    """A job as the backend that took it knows it."""

    kind: str
    """`local`, `slurm` or `ray`."""
    id: str
    """SLURM job id, Ray submission id, process id of the local supervisor."""
    array_index: int | None
    """Place in a job array; None for a job of its own."""
    submitted: float
    """Seconds since 1970."""
    cluster: dict[str, Any] | None = None
    """What else the backend needs to find the job again, such as a Ray's address."""
    depends_on: list[str] = field(default_factory=list[str])
    """Keys of the jobs, or run folders, that must have finished before it starts."""

    @property
    def key(self) -> str:
        """`ID`, or `ID_INDEX` within an array: what SLURM's own programs take too."""
        return self.id if self.array_index is None else f"{self.id}_{self.array_index}"


@dataclass(frozen=True)
class JobState:
    """How a job stands in the eyes of its scheduler."""

    state: Literal["pending", "running", "requeued", "ended", "unknown"]
    """requeued: pending, and not for the first time. unknown: the scheduler did not answer."""
    reason: str | None = None
    """Why it is pending, or how it ended, in the scheduler's words."""
    nodes: str | None = None
    exit_code: int | None = None

    @property
    def is_live(self) -> bool:
        """Waits, runs, or may do so."""
        return self.state != "ended"


def write_job(folder: Path, record: JobRecord) -> None:
    """Write `job.json` so that it is whole or absent."""
    write_whole(folder / JOB_NAME, json.dumps(asdict(record), indent=1) + "\n")


def read_job(folder: Path) -> JobRecord | None:
    """The job that was last submitted for the run in `folder`; None where there was none."""
    path = folder / JOB_NAME
    return JobRecord(**json.loads(path.read_text())) if path.exists() else None


def write_whole(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file that others may read at any time: they see the old text or the new one."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(descriptor, "w") as file:
        os.fchmod(descriptor, mode)
        file.write(text)
        file.flush()
        os.fsync(descriptor)
    Path(temporary).replace(path)
