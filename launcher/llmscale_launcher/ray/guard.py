"""`python -m llmscale_launcher.ray.guard PARENT COMMAND…`: become COMMAND, and die when PARENT does.

A Ray worker has many threads, in which nothing may run between fork and exec; so what a child needs before
it starts is done here, after exec and before the next one.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1


def guarded(command: Sequence[str], parent: int) -> list[str]:
    """`command` so that the kernel kills it when the thread of process `parent` that starts it ends."""
    return [sys.executable, "-m", "llmscale_launcher.ray.guard", str(parent), *command]


def main(parent: int, command: list[str]) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(128 + signal.SIGKILL)
    # Ray blocks SIGINT in all of its processes, and a mask is handed down.
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
