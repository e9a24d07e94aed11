"""Where the C++ operations that DeepSpeed compiles on demand live, and how their locks are kept clean.

`make install` compiles them ahead into a folder of the Python environment; every process then only
loads them. torch guards a build with a lock file that a killed process leaves behind, and a lock left
behind hangs every later start without a word: it is removed before anything can wait for it.
"""

import importlib.metadata
import math
import os
import platform
import sys
import time
from pathlib import Path

import psutil
import torch

VARIABLE = "TORCH_EXTENSIONS_DIR"
LONGEST_BUILD_SECONDS = 900.0


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
    """One folder for each pair of versions and processor kind: an operation of another does not load."""
    versions = f"torch-{torch.__version__}-deepspeed-{importlib.metadata.version('deepspeed')}"
    return Path(sys.prefix) / "torch_extensions" / f"{versions}-{platform.machine()}"


def remove_stale_locks(folder: Path) -> list[Path]:
    """Remove the build locks under `folder` that no living process of this machine holds open.

    A builder keeps its lock file open for as long as it builds, so a lock that nobody has open belonged
    to a process that was killed. In a container, which sees its own processes only, a lock must also be older
    than any build.
    """
    locks = [lock.resolve() for lock in folder.glob("*/lock")]
    held = _open_files() if locks else set[Path]()
    youngest = time.time() - (0 if _sees_all_processes() else LONGEST_BUILD_SECONDS)
    stale = [lock for lock in locks if lock not in held and _modified(lock) <= youngest]
    for lock in stale:
        lock.unlink(missing_ok=True)
    return stale


def _sees_all_processes() -> bool:
    """Whether this is the machine's first process namespace, whose number is fixed (`PROC_PID_INIT_INO`)."""
    namespace = Path("/proc/self/ns/pid")
    return not namespace.exists() or namespace.readlink().name == "pid:[4026531836]"


def _modified(lock: Path) -> float:
    try:
        return lock.stat().st_mtime
    except FileNotFoundError:  # its builder is done
        return math.inf


def _open_files() -> set[Path]:
    """Regular files that this user's processes have open. Those of other users cannot be seen."""
    files: set[Path] = set()
    for process in psutil.process_iter():
        try:
            files.update(Path(file.path) for file in process.open_files())
        except (psutil.AccessDenied, psutil.NoSuchProcess):
            continue
    return files
