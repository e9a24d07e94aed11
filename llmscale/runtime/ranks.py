"""Rank processes: forked from a preloaded server, logged to a file, and telling how they ended.

Importing torch, Megatron and DeepSpeed takes seconds; a fork of a process that has done so takes
milliseconds. The server imports them once, and every rank, first start or restart, is its child.

A rank that is done says so through a pipe. Its exit code alone would not do: a library that calls
`exit(0)` in the middle of training looks like success.
"""

import contextlib
import ctypes
import gc
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from llmscale.runtime import stop_signal
from llmscale.runtime.beats import beats_folder
from llmscale.runtime.final import FinalFailure
from llmscale.runtime.output import SERVER_LOG, write_to
from llmscale.runtime.stacks import install_dump

Entry = Callable[..., int]

PR_SET_PDEATHSIG = 1
LOG_TAIL_LINES = 20

CONTEXT = multiprocessing.get_context("forkserver")


def start_server(preload: Sequence[str], log: Path | None = None) -> None:
    """Start the server that ranks are forked from; it imports `preload` while the caller goes on.

    What the imports write goes to `log`, if given.

    Ctrl-C reaches every process of a terminal's group. It must not end the server or a rank: the
    agent hears it and asks the ranks to save. An ignored signal stays ignored in the child.
    """
    CONTEXT.set_forkserver_preload(["llmscale.runtime.server_setup", *preload])
    if log is not None:
        os.environ[SERVER_LOG] = str(log)
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, handler)
        os.environ.pop(SERVER_LOG, None)


def warm_up() -> None:
    """Wait until the server has imported everything: from then on ranks start in milliseconds."""
    process = CONTEXT.Process(target=_nothing, name="warm-up")
    _start(process)
    process.join()


def _nothing() -> None:
    """The shortest life of a child of the server."""


def _start(process: ForkServerProcess) -> None:
    try:
        process.start()
    except (EOFError, OSError) as error:
        raise RuntimeError("the server that ranks are forked from is gone; see logs/server*.log") from error


@dataclass(frozen=True)
class Ending:
    """What a rank said last."""

    exit_code: int | None
    """What the entry returned; None where it raised, unless that was final."""
    cause: str
    time: float


@dataclass
class RankProcess:
    """One rank of this node, seen from the agent."""

    rank: int
    process: ForkServerProcess
    pipe: Connection
    log: Path
    log_start: int
    """Where this start's output begins in the log, in bytes."""
    ending: Ending | None = field(default=None)

    @property
    def pid(self) -> int:
        return self.process.pid or 0

    def poll(self) -> None:
        """Hear what the rank says, if anything."""
        if self.ending is None and self.pipe.poll():
            try:
                self.ending = self.pipe.recv()
            except (EOFError, OSError):
                return

    def send(self, number: signal.Signals) -> None:
        if self.process.exitcode is None:
            # It may have ended and the server not have said so yet.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def log_tail(self) -> list[str]:
        """The last lines that this start of the rank wrote."""
        with self.log.open("rb") as file:
            file.seek(max(self.log_start, self.log.stat().st_size - 16384))
            lines = file.read().decode(errors="replace").splitlines()
        return lines[-LOG_TAIL_LINES:]


def start_rank(
    rank: int, entry: Entry, arguments: Sequence[object], variables: Mapping[str, str], log: Path
) -> RankProcess:
    """Fork a rank that calls `entry(*arguments)` with `variables` in its environment."""
    log.parent.mkdir(parents=True, exist_ok=True)
    log_start = log.stat().st_size if log.exists() else 0
    receiver, sender = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(
        target=_rank_main, args=(entry, tuple(arguments), dict(variables), log, sender), name=f"rank-{rank}"
    )
    _start(process)
    sender.close()
    return RankProcess(rank, process, receiver, log, log_start)


def kill_ranks(ranks: Sequence[RankProcess]) -> None:
    """End the ranks at once. What they were saving is not committed, so nothing half-done counts."""
    for rank in ranks:
        rank.send(signal.SIGKILL)
    for rank in ranks:
        rank.process.join()
        rank.pipe.close()


def join_ranks(ranks: Sequence[RankProcess], seconds: float) -> None:
    """Let ranks that are done leave by themselves; end those that do not within `seconds`."""
    deadline = time.monotonic() + seconds
    for rank in ranks:
        rank.process.join(max(0.0, deadline - time.monotonic()))
    kill_ranks(ranks)


def _rank_main(
    entry: Entry, arguments: tuple[object, ...], variables: Mapping[str, str], log: Path, pipe: Connection
) -> None:
    stop_signal.install()
    # What the server has imported stays for good. Collections need not go through it again: DeepSpeed
    # alone asks for six of a quarter second each when it starts in bf16.
    gc.freeze()
    _die_with_agent()
    write_to(log)
    os.environ.update(variables)
    beats = beats_folder()
    if beats:
        install_dump(beats, int(variables["RANK"]))
    stamp = time.strftime("%Y-%m-%d %H:%M:%S")
    print(f"--- rank {variables.get('RANK', '?')} pid {os.getpid()} started {stamp} ---", flush=True)
    try:
        code = entry(*arguments)
    except BaseException as error:
        traceback.print_exc()
        if not isinstance(error, SystemExit):
            verdict = error.exit_code if isinstance(error, FinalFailure) else None
            pipe.send(Ending(verdict, _summary(error), time.time()))
        raise SystemExit(1) from None
    pipe.send(Ending(code, f"returned {code}", time.time()))


def _summary(error: BaseException) -> str:
    return "".join(traceback.format_exception_only(error)).strip()


def _die_with_agent() -> None:
    """Have the kernel end this rank when the server goes, and let the server go when the agent does.

    The server lives as long as anyone holds the pipe that its children inherit, so a rank lets go of it.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    server: Any = forkserver._forkserver  # pyright: ignore[reportAttributeAccessIssue]
    os.close(server._forkserver_alive_fd)
    server._forkserver_alive_fd = None
    agent = multiprocessing.parent_process()
    if agent is not None and not agent.is_alive():
        os._exit(1)
