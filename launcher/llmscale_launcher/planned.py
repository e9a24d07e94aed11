"""What a `submit` will hand over, before anything is written: jobs in order, and what each waits for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llmscale.config.schema import Config


@dataclass(frozen=True)
class PlannedTask:
    """One run of a sweep."""

    config: Config
    changes: dict[str, Any]

    @property
    def folder(self) -> Path:
        return self.config.run_folder.absolute()


@dataclass(frozen=True)
class PlannedWait:
    """A run that must be over first, as `base.Earlier` says it."""

    folder: Path
    until: Literal["finished", "ended"] = "finished"


@dataclass(frozen=True)
class PlannedJob:
    """A job-to-be: one run, or with `tasks` an array of runs."""

    config: Config
    tasks: tuple[PlannedTask, ...] = ()
    after: tuple[PlannedWait, ...] = ()

    @property
    def folder(self) -> Path:
        return self.config.run_folder.absolute()

    @property
    def runs(self) -> dict[Path, Config]:
        """Every run of the job: its folder and its config."""
        if self.tasks:
            return {task.folder: task.config for task in self.tasks}
        return {self.folder: self.config}
