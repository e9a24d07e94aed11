"""Whether a rank died because memory ran out: of this machine, of its cgroup, or of the device. No torch.

The kernel ends a process without a word, and counts that it did; what Python or torch cannot get, they
say. A restart would only ask for as much again, so it is worth knowing.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from llmscale.control.messages import Failure

HINT = (
    "memory ran out: lower train.micro_batch_size, set train.recompute=full, or cut the model into more "
    "parts; `llmscale plan` tells how much a rank needs"
)

_WORDS = re.compile(
    r"\bMemoryError\b|OutOfMemoryError|CUDA out of memory|DefaultCPUAllocator.*allocate memory"
    r"|std::bad_alloc|Cannot allocate memory|CUBLAS_STATUS_ALLOC_FAILED",
    re.IGNORECASE,
)
_KILLS = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)

CGROUPS = Path("/sys/fs/cgroup")


def told_apart(failure: Failure, kills_before: int) -> Failure:
    """The same failure, of the kind "out of memory" and with a hint where that is what it was.

    Args:
        kills_before: `kernel_kills()` before the ranks started.
    """
    killed = failure.kind == "signal" and "SIGKILL" in failure.cause and kernel_kills() > kills_before
    spoken = failure.kind in ("error", "signal", "exit")
    if killed or (spoken and speaks_of_memory([failure.cause, *failure.log_lines])):
        return replace(failure, kind="out of memory", cause=f"{failure.cause}; {HINT}")
    return failure


def speaks_of_memory(lines: Sequence[str]) -> bool:
    """Whether a rank's last words are about memory that it could not get."""
    return any(_WORDS.search(line) for line in lines)


def kernel_kills(
    own: Path = Path("/proc/self/cgroup"), root: Path = CGROUPS, machine: Path = Path("/proc/vmstat")
) -> int:
    """A number that rises when the kernel ends a process for want of memory: in this process's cgroup or
    one above it, or on the whole machine where that is counted.

    Taken before ranks start and after one died of SIGKILL; if it has risen, that was why.
    """
    return sum(_count(path) for path in {*_counters(own, root), machine})


def _counters(own: Path, root: Path) -> Iterator[Path]:
    for line in own.read_text().splitlines() if own.exists() else []:
        _, controllers, name = line.split(":", 2)
        relative = name.lstrip("/")
        if not controllers:
            # A limit of a folder above counts its kills there, so the folders up to the root are looked at.
            for base in (root, root / "unified"):
                for folder in [base / relative, *(base / relative).parents]:
                    yield folder / "memory.events"
                    if folder == base:
                        break
        elif "memory" in controllers.split(","):
            yield root / "memory" / relative / "memory.oom_control"
            yield root / "memory" / "memory.oom_control"


def _count(path: Path) -> int:
    try:
        match = _KILLS.search(path.read_text())
    except OSError:
        return 0
    return int(match[1]) if match else 0
