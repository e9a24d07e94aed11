"""What every way of running a job offers: local, SLURM and Ray look the same from above."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from llmscale.config.problems import Problem
from llmscale.config.schema import Config
from llmscale_launcher.job import JobRecord, JobState


@dataclass(frozen=True)
class Earlier:
    """A run that a job waits for."""

    folder: Path
    job: JobRecord | None
    """None in a dry run, where nothing has been submitted."""
    until: Literal["finished", "ended"] = "finished"
    """finished: with exit code 0, else the waiting job must not start. ended: in whatever way."""


@dataclass(frozen=True)
class JobRequest:
    """One job: a run, or an array of runs that differ in their config files only."""

    config: Config
    folder: Path
    """Absolute. Run folder; of an array: the folder of the sweep, where script and code lie."""
    tasks: tuple[Path, ...] = ()
    """Run folders of a job array, by array index; empty for a single run. See `Backend.has_arrays`."""
    after: tuple[Earlier, ...] = ()
    """All of them must be over before this job starts."""
    beside: tuple[Config, ...] = ()
    """Runs that are submitted together with this one: a Ray that is started for it has room for them, too."""
    directory: Path = field(default_factory=Path.cwd)
    """Where the job works: relative paths of the config start here."""

    @property
    def code(self) -> Path:
        """Snapshot of the packages that the job runs from: its PYTHONPATH."""
        return self.folder / "code"


class Backend(Protocol):
    """A scheduler. Everything it needs to find a job again is in the `JobRecord`."""

    has_arrays: bool
    """Takes a request with `tasks`. Without, the runs of a sweep are submitted one by one."""

    def check(self, config: Config) -> list[Problem]:
        """What stands against submitting here and now, such as a scheduler that is not installed."""
        ...

    def script(self, request: JobRequest) -> str:
        """The text that the job will run; nothing is written or submitted."""
        ...

    def submit(self, request: JobRequest) -> JobRecord:
        """Write the script to the run folder, frozen already, and hand the job over; returns at once.

        Raises:
            SubmitError: the scheduler refused it, in its own words.
        """
        ...

    def states(self, records: Sequence[JobRecord]) -> dict[str, JobState]:
        """How the jobs stand, by `JobRecord.key`; one query for all of them."""
        ...

    def cancel(self, record: JobRecord) -> None:
        """Ask the job to save and leave, and never to start (again); returns at once.

        Raises:
            SubmitError: the scheduler refused, in its own words.
        """
        ...

    def kill(self, record: JobRecord) -> None:
        """End a job that does not leave; what it has not saved is lost.

        Raises:
            SubmitError: the scheduler refused, in its own words.
        """
        ...


class SubmitError(Exception):
    """A scheduler said no, or could not be reached. Carries what it said (exit code 1)."""
