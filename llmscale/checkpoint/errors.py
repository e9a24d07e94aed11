"""What can go wrong with stored state, as opposed to with the user's input (`InputError`)."""


class CheckpointError(Exception):
    """A checkpoint cannot be written or read."""


class DamagedCheckpoint(CheckpointError):
    """What is stored is not what was saved: torn, changed, truncated, swapped, or unreadable."""


class StaleWriter(CheckpointError):
    """A newer start of the run owns the folder: this writer must not commit any more."""


class SaveFailed(CheckpointError):
    """A save did not commit, and training was asked to stop when that happens."""
