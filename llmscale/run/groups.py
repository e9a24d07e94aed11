"""What a user means by RUN: a run, or a sweep or pipeline, whose runs belong together. No torch."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llmscale.config.problems import InputError, Problem
from llmscale.runtime.run_folder import CONFIG_NAME, run_folders

GROUP_FILES: dict[str, Literal["sweep", "pipeline"]] = {
    "sweep.json": "sweep",
    "pipeline.json": "pipeline",
}


@dataclass(frozen=True)
class Member:
    """A run of a sweep or pipeline."""

    folder: Path
    note: str
    """What makes it differ from the others: `optimizer.lr=0.001`, or the name of the stage."""


@dataclass(frozen=True)
class RunGroup:
    """A sweep, a pipeline, or a single run on its own."""

    name: str
    kind: Literal["run", "sweep", "pipeline"]
    members: tuple[Member, ...]

    @property
    def folders(self) -> list[Path]:
        return [member.folder for member in self.members]


def all_groups(root: Path) -> list[RunGroup]:
    """Everything under `root`, the run that was touched last first; runs of a group stand together."""
    grouped = {group.name: group for name in GROUP_FILES for group in _read_groups(root, name)}
    owner = {folder.resolve(): group.name for group in grouped.values() for folder in group.folders}
    ordered: dict[str, RunGroup] = {}
    for folder in run_folders(root):
        group = owner.get(folder.resolve())
        if group is None:
            ordered[f"run {folder.name}"] = single(folder)
        else:
            ordered.setdefault(f"group {group}", grouped[group])
    return list(ordered.values())


def find_group(name: str, root: Path) -> RunGroup:
    """The run, sweep or pipeline that is named by its path or by its name under `root`.

    Raises:
        InputError: there is none.
    """
    for folder in (Path(name), root / name):
        if (folder / CONFIG_NAME).is_file():
            return single(folder)
        for file in GROUP_FILES:
            if (folder / file).is_file():
                return _read_group(folder / file)
    known = sorted(group.name for group in all_groups(root))
    raise InputError(
        [Problem("RUN", name, f"no such run; under {root} there are: {', '.join(known) or 'none'}")]
    )


def single(folder: Path) -> RunGroup:
    return RunGroup(folder.name, "run", (Member(folder, ""),))


def _read_groups(root: Path, file: str) -> Sequence[RunGroup]:
    return [_read_group(path) for path in sorted(root.glob(f"*/{file}"))]


def _read_group(path: Path) -> RunGroup:
    content = json.loads(path.read_text())
    members = [_member(entry) for entry in content["runs" if path.name == "sweep.json" else "stages"]]
    # A run whose folder somebody has removed is no reason not to show the others.
    there = tuple(member for member in members if (member.folder / CONFIG_NAME).is_file())
    return RunGroup(content["name"], GROUP_FILES[path.name], there)


def _member(entry: dict[str, Any]) -> Member:
    changes = " ".join(f"{key}={value}" for key, value in entry.get("changes", {}).items())
    return Member(Path(entry["run"]), changes or entry.get("name", ""))
