"""Fencing: which start of a run may commit, and which commits belong to the run's line of history.

Each start of a run claims the next epoch by creating a file of that number, which succeeds for one
process only. A writer whose epoch is no longer the newest must not commit. As a writer may be halted
between looking and committing for any length of time, each start also records the step that it went on
from: a checkpoint of an older epoch beyond that step is not part of history, whenever it appears.
Both are facts about file names, so neither can be torn.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from llmscale.checkpoint.errors import CheckpointError
from llmscale.checkpoint.files import make_durable_folder, sync_folder, write_new

FOLDER = "epochs"
_NAME = re.compile(r"^(\d{8})(?:\.from-(\d{8,}|nothing))?$")


@dataclass(frozen=True)
class Epochs:
    """What the epoch files of a run say at one moment."""

    newest: int
    """0 where the run has never been started."""
    resumed: dict[int, int]
    """Step that each epoch went on from; -1 for a start from scratch."""

    def fences(self, epoch: int, step: int) -> bool:
        """Whether a later start of the run went on from before this step, leaving it out of history."""
        return any(later > epoch and start < step for later, start in self.resumed.items())


def read_epochs(checkpoints: Path) -> Epochs:
    newest, resumed = 0, {}
    if (checkpoints / FOLDER).is_dir():
        for path in (checkpoints / FOLDER).iterdir():
            match = _NAME.match(path.name)
            if not match:
                continue
            epoch = int(match[1])
            newest = max(newest, epoch)
            if match[2]:
                resumed[epoch] = -1 if match[2] == "nothing" else int(match[2])
    return Epochs(newest, resumed)


def claim_epoch(checkpoints: Path, above: int) -> int:
    """Take the next epoch for this start of the run: greater than `above` and than all that were claimed.

    Raises:
        CheckpointError: `epochs` is a link, through which files would land elsewhere.
    """
    if (checkpoints / FOLDER).is_symlink():
        raise CheckpointError(f"{checkpoints / FOLDER}: is a link; remove it")
    make_durable_folder(checkpoints / FOLDER)
    epoch = max(above, read_epochs(checkpoints).newest)
    while True:
        epoch += 1
        try:
            write_new(checkpoints / FOLDER / f"{epoch:08d}", [])
        except FileExistsError:
            continue
        sync_folder(checkpoints / FOLDER)
        return epoch


def record_start(checkpoints: Path, epoch: int, step: int | None) -> None:
    """Say which step this epoch goes on from (None: from scratch)."""
    origin = "nothing" if step is None else f"{step:08d}"
    write_new(checkpoints / FOLDER / f"{epoch:08d}.from-{origin}", [])
    sync_folder(checkpoints / FOLDER)
