"""All that this process has started, and what that has started, also after the ones between have ended.

Ray's daemons rename themselves over their environment, so that a mark there is lost, and one that outlives
its parent would be nobody's: it falls to this process instead.
"""

import ctypes
import os
import time
from contextlib import suppress

import psutil

PR_SET_CHILD_SUBREAPER = 36
GONE_SECONDS = 30.0
POLL_SECONDS = 0.02


def adopt_orphans() -> None:
    """From now on a descendant whose parent ends becomes a child of this process.

    Raises:
        OSError: the kernel does not want to.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1) != 0:
        raise OSError(ctypes.get_errno(), "cannot adopt orphans")


def bury(*others: int) -> None:
    """Take leave of adopted children that have ended; `others` are the ids of those waited for elsewhere."""
    for child in psutil.Process().children():
        if child.pid not in others:
            with suppress(ChildProcessError):
                os.waitpid(child.pid, os.WNOHANG)


def end_descendants() -> None:
    """Kill them, and wait until they are gone; none of them may be waited for elsewhere.

    Raises:
        TimeoutError: one of them does not die, such as one that waits for a broken disk.
    """
    deadline = time.monotonic() + GONE_SECONDS
    # Again and again: one may have started another between the look and the kill.
    while left := psutil.Process().children(recursive=True):
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes {[process.pid for process in left]} were killed and do not end")
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        bury()
        time.sleep(POLL_SECONDS)
