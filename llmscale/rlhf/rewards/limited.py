"""A function in a subprocess of its own, with limits on what it may use: for accidents, not against attacks.

Processor time, memory, files and descriptors are limited by the kernel (`setrlimit`, in the child). How long
a call takes, and how many processes it becomes, is watched here: the kernel's own limit of processes counts
all of a user's, and does not hold for root.
"""

import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import psutil

from llmscale.config.rlhf_rewards import WorkerSection
from llmscale.rlhf.rewards.family import end_family, family_of

COMMAND = "from llmscale.rlhf.rewards.child import main; main()"
KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
"""Variables of the environment that a worker gets."""
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
ANSWERS = ({"ready"}, {"problem"}, {"result"}, {"error", "broken"})
"""Keys of the lines that a worker writes."""
NO_ANSWER = "answered with something that is none"
LONGEST_ANSWER = 64 << 20
LONGEST_STDERR = 4000
LOOK_SECONDS = 0.1
"""Between two looks at what the worker has become."""
FORK_ROOM = 1024
"""Tasks that the kernel lets the user start after the worker, in all."""

Kind = Literal["plain", "reward"]


class WorkerFailed(Exception):
    """The call has no result; the message says why, with the last words of the worker's stderr."""


class BadFunction(WorkerFailed):
    """The function cannot be imported, or cannot be called as it must be."""


class LimitedProcess:
    """A function in a process that is started when it is first called, and again after it had to be killed.
    Threads take turns.

    Args:
        function: `module:name`, looked for where this process looks, and in the folder where it runs.
        kind: `reward`: a function of prompts and completions. `plain`: any, called by names.
    """

    def __init__(self, function: str, kind: Kind, limits: WorkerSection) -> None:
        self.function = function
        self.starts = 0
        """Times that a process has been started."""
        self._kind: Kind = kind
        self._limits = limits
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: Path | None = None
        self._stderr = bytearray()
        self._turn = threading.RLock()
        self._stopped = False

    def start(self) -> None:
        """Import the function now.

        Raises:
            BadFunction, WorkerFailed
        """
        with self._turn:
            if self._process is None or self._process.poll() is not None:
                self.close()
                self._start()

    def stop(self) -> None:
        """From another thread: the call that is under way fails now, and so does every later one."""
        self._stopped = True
        process = self._process
        if process is not None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def _start(self) -> None:
        if self._stopped:
            raise WorkerFailed("stopped")
        self.starts += 1
        self._folder = Path(tempfile.mkdtemp(prefix="llmscale-reward-"))
        self._process = subprocess.Popen(
            [sys.executable, "-c", COMMAND],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self._folder,
            env=self._environment(self._folder),
            start_new_session=True,
        )
        for pipe in self._pipes():
            os.set_blocking(pipe.fileno(), False)
        answer = self._exchange(self._setup(), self._limits.start_seconds, "importing its module")
        if "problem" in answer:
            message = f"{self.function}: {answer['problem']}{self._last_words()}"
            self.close()
            raise BadFunction(message)

    def call(self, arguments: Mapping[str, Any]) -> Any:
        """What the function returns.

        Raises:
            BadFunction, WorkerFailed: it raised, ended, or used more than it may. The next call is of a new
                process, unless it only raised.
        """
        with self._turn:
            self.start()
            answer = self._exchange(arguments, self._limits.timeout_seconds, "the call")
            if "error" in answer:
                message = f"{answer['error']}{self._last_words()}"
                if answer["broken"]:
                    self.close()
                raise WorkerFailed(message)
            if "result" not in answer:
                self.close()
                raise WorkerFailed(f"{self.function}: the call {NO_ANSWER}")
            return answer["result"]

    def close(self) -> None:
        """End it, with all that it has started."""
        with self._turn:
            if self._process is not None:
                end_family(self._process)
                for pipe in self._pipes():
                    # A worker that is killed leaves what was not yet written to it.
                    with suppress(OSError):
                        pipe.close()
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)
            self._process, self._folder = None, None
            self._stderr.clear()

    def _pipes(self) -> Sequence[Any]:
        assert self._process is not None
        return [self._process.stdin, self._process.stdout, self._process.stderr]

    def _setup(self) -> dict[str, Any]:
        here = [str(Path(entry).absolute()) for entry in sys.path]
        return {
            "path": [*here, *([] if str(Path.cwd()) in here else [str(Path.cwd())])],
            "function": self.function,
            "kind": self._kind,
            "limits": {**self._limits.model_dump(exclude={"environment"}), "user_tasks": _user_tasks()},
        }

    def _environment(self, folder: Path) -> dict[str, str]:
        kept = {name: os.environ[name] for name in (*KEPT, *self._limits.environment) if name in os.environ}
        # No GPU: its memory is the models'.
        fixed = {"TMPDIR": str(folder), "CUDA_VISIBLE_DEVICES": "", "PYTHONUNBUFFERED": "1"}
        fixed |= dict.fromkeys(ONE_THREAD, "1")
        path = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)
        return {**fixed, "PYTHONPATH": path, **kept}

    def _exchange(self, order: Mapping[str, Any], seconds: float, what: str) -> dict[str, Any]:
        """One line there, one line back.

        Raises:
            WorkerFailed: none came; the process is gone then.
        """
        assert self._process is not None
        self._stderr.clear()
        line = json.dumps(order, default=str).encode() + b"\n"
        exchange = _Exchange(self._process, line, self._stderr)
        try:
            fault = exchange.run(seconds, self._limits)
            answer = None if fault else json.loads(exchange.answer)
        except ValueError:
            fault, answer = NO_ANSWER, None
        if isinstance(answer, dict) and {*answer} in ANSWERS:
            return answer
        message = f"{self.function}: {what} {fault or NO_ANSWER}{self._last_words()}"
        self.close()
        raise WorkerFailed(message)

    def _last_words(self) -> str:
        lines = [line.strip() for line in self._stderr.decode(errors="replace").splitlines()]
        said = " | ".join([line for line in lines if line][-3:])
        return f"; its stderr ends so: {said[-400:]}" if said else ""


class _Exchange:
    """Writes, reads and watches at the same time, so that neither side waits for the other for ever."""

    def __init__(self, process: subprocess.Popen[bytes], line: bytes, stderr: bytearray) -> None:
        self.answer = bytearray()
        self._process = process
        self._left = memoryview(line)
        self._stderr = stderr

    def run(self, seconds: float, limits: WorkerSection) -> str | None:
        """Until there is an answer: None; or what went wrong."""
        deadline = time.monotonic() + seconds
        next_look = time.monotonic() + LOOK_SECONDS
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdin, selectors.EVENT_WRITE)  # type: ignore[arg-type]
            selector.register(self._process.stdout, selectors.EVENT_READ)  # type: ignore[arg-type]
            selector.register(self._process.stderr, selectors.EVENT_READ)  # type: ignore[arg-type]
            while not self.answer.endswith(b"\n"):
                now = time.monotonic()
                if now >= deadline:
                    return f"took longer than {seconds:g} seconds and was killed"
                if now >= next_look:
                    fault = _excess(self._process.pid, limits)
                    if fault is not None:
                        return fault
                    # Never more than a twentieth of the time, on hosts with many processes.
                    next_look = now + max(LOOK_SECONDS, 20 * (time.monotonic() - now))
                for key, _ in selector.select(max(0.0, min(deadline, next_look) - now)):
                    if not self._move(selector, key.fileobj):
                        return self._ended(limits)
                if len(self.answer) > LONGEST_ANSWER:
                    return f"answered with more than {LONGEST_ANSWER >> 20} MiB"
        self._read_stderr()
        return _excess(self._process.pid, limits)

    def _move(self, selector: selectors.BaseSelector, pipe: Any) -> bool:
        """Some bytes; False: the worker has ended."""
        if pipe is self._process.stdin:
            try:
                self._left = self._left[os.write(pipe.fileno(), self._left[: 1 << 16]) :]
            except BrokenPipeError:
                return False
            if not self._left:
                selector.unregister(pipe)
            return True
        if pipe is self._process.stderr:
            if not self._read_stderr():
                selector.unregister(pipe)
            return True
        found = os.read(pipe.fileno(), 1 << 16)
        self.answer += found
        return bool(found)

    def _read_stderr(self) -> bool:
        assert self._process.stderr is not None
        try:
            found = os.read(self._process.stderr.fileno(), 1 << 16)
        except BlockingIOError:
            return True
        self._stderr += found
        del self._stderr[:-LONGEST_STDERR]
        return bool(found)

    def _ended(self, limits: WorkerSection) -> str:
        self._read_stderr()
        try:
            code = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            return "closed its pipe to here"
        if code >= 0:
            return f"ended the process with exit code {code}"
        if -code == signal.SIGXCPU:
            return f"used more than {limits.cpu_seconds} seconds of processor time and was killed"
        return f"was ended by signal {-code} ({signal.Signals(-code).name})"


def _excess(pid: int, limits: WorkerSection) -> str | None:
    """What a worker and its descendants use together that they may not; those that ended do not count."""
    family = family_of(pid)
    if len(family) > limits.processes:
        return f"became {len(family)} processes, of which {limits.processes} are allowed, and was killed"
    used = 0
    for process in family:
        with suppress(psutil.NoSuchProcess):
            used += process.memory_info().rss
    if used > limits.memory_mib << 20:
        return f"used {used >> 20:,} MiB in {len(family)} processes, of {limits.memory_mib:,}, and was killed"
    return None


def _user_tasks() -> int | None:
    """Tasks that this user may have at most while the worker runs; None: the kernel limits root's not."""
    if os.getuid() == 0:
        return None
    own = 0
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            own += process.num_threads() if process.uids().real == os.getuid() else 0
    return own + FORK_ROOM
