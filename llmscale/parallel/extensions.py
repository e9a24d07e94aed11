"""Where the C++ operations that DeepSpeed compiles on demand live, and how their locks are kept clean.

`make install` compiles them ahead into a folder of the Python environment; every process then only
loads them. torch guards a build with a lock file that a killed process leaves behind, and a lock left
behind hangs every later start without a word: it is removed before anything can wait for it.
"""

import os
import platform
import sys
from pathlib import Path

import psutil
import torch

VARIABLE = "TORCH_EXTENSIONS_DIR"


def use_prebuilt_extensions() -> Path | None:
    """Point torch at the environment's extensions and clear stale locks there.

    Call it before DeepSpeed loads its first operation, which is in its `init_distributed`.
    A `TORCH_EXTENSIONS_DIR` that is set already is kept. Where the environment cannot be written to and
    nothing was built ahead, torch's own cache of the user is left in place and None is returned.
    """
    folder = Path(os.environ.get(VARIABLE) or environment_folder())
    if not folder.is_dir() and not os.access(sys.prefix, os.W_OK):
        return None
    os.environ[VARIABLE] = str(folder)
    remove_stale_locks(folder)
    return folder


def environment_folder() -> Path:
    """One folder a torch version and processor kind: an operation built for another one does not load."""
    return Path(sys.prefix) / "torch_extensions" / f"torch-{torch.__version__}-{platform.machine()}"


def remove_stale_locks(folder: Path) -> list[Path]:
    """Remove the build locks under `folder` that no living process of this machine holds open.

    A builder keeps its lock file open for as long as it builds, so a lock that nobody has open belonged
    to a process that was killed.
    """
    locks = [lock.resolve() for lock in folder.glob("*/lock")]
    held = _open_files() if locks else set[Path]()
    stale = [lock for lock in locks if lock not in held]
    for lock in stale:
        lock.unlink(missing_ok=True)
    return stale


def _open_files() -> set[Path]:
    """Regular files that this user's processes have open. Those of other users cannot be seen."""
    files: set[Path] = set()
    for process in psutil.process_iter():
        try:
            files.update(Path(file.path) for file in process.open_files())
        except (psutil.AccessDenied, psutil.NoSuchProcess):
            continue
    return files
