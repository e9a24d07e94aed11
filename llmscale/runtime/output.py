"""Where a process without a terminal writes."""

import os
import sys
from pathlib import Path

SERVER_LOG = "LLMSCALE_SERVER_LOG"
"""Variable that tells the rank server its log file."""


def write_to(log: Path) -> None:
    """Send standard output and error, Python's and the libraries', to the end of `log`."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
