"""What runs in the subprocess of a reward: takes limits upon itself, imports a function, calls it as told.

One JSON object a line comes in and goes out. The function's own output goes to stderr, and it reads nothing.
Needs the standard library alone, so that a process is there at once.
"""

import ctypes
import importlib
import inspect
import math
import os
import resource
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence

# By name: what a program leaves in the module `json` is no answer of this one.
from json import dumps, loads
from pathlib import Path
from typing import Any, TextIO, TypeGuard

PR_SET_CHILD_SUBREAPER = 36
PARENT_SECONDS = 1.0
LONGEST_MESSAGE = 1000


def main() -> None:
    """The first line says what to import and what may be used; each later one is a call."""
    orders, answers = _own_pipes()
    setup = loads(orders.readline())
    folder = Path.cwd()
    threading.Thread(target=_end_with, args=(os.getppid(), folder), daemon=True).start()
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)  # orphans stay in sight of who counts and kills
    sys.path[:] = setup["path"]
    limits = setup["limits"]
    _limit(limits)
    _allow_cpu(limits["cpu_seconds"] + math.ceil(limits["start_seconds"]))
    try:
        call = CALLS[setup["kind"]](load(setup["function"]))
    except BaseException as error:  # whatever a module does when it is imported is its fault
        _tell(answers, {"problem": brief(error)})
        return
    _tell(answers, {"ready": True})
    for line in orders:
        _allow_cpu(limits["cpu_seconds"])
        try:
            answer: dict[str, Any] = {"result": call(loads(line))}
        except BaseException as error:
            answer = {"error": brief(error), "broken": isinstance(error, MemoryError)}
        _tell(answers, answer)
    _end(folder)


class Unsuitable(Exception):
    """The function is there and cannot be used; the message says why."""


def load(name: str) -> Callable[..., Any]:
    """The function `module:name`.

    Raises:
        Unsuitable: there is none.
    """
    module, _, attribute = name.partition(":")
    found = getattr(importlib.import_module(module), attribute, None)
    if found is None:
        raise Unsuitable(f"the module {module} has no {attribute}")
    if not callable(found) or inspect.iscoroutinefunction(found):
        raise Unsuitable(f"{name} is no function that can be called and returns a value")
    return found


def plain(function: Callable[..., Any]) -> Callable[[Mapping[str, Any]], Any]:
    """Calls with what is ordered."""
    return lambda arguments: function(**arguments)


def reward(function: Callable[..., Any]) -> Callable[[Mapping[str, Any]], list[float | str]]:
    """Calls a reward function with the fields that it takes; answers a number for each completion, or what is
    wrong with what it returned.

    Raises:
        Unsuitable: it takes other arguments.
    """
    parameters = inspect.signature(function).parameters.values()
    takes_all = any(one.kind == one.VAR_KEYWORD for one in parameters)
    by_name = [one for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    names = {one.name for one in by_name}
    if any(one.kind == one.POSITIONAL_ONLY for one in parameters) or not (
        takes_all or {"prompts", "completions"} <= names
    ):
        raise Unsuitable(
            f"takes {inspect.signature(function)}; a reward function is called by name, with prompts and "
            "completions and the other fields of the records: def name(prompts, completions, **fields)"
        )
    needed = {one.name for one in by_name if one.default is one.empty}

    def call(arguments: Mapping[str, Any]) -> list[float | str]:
        missing = sorted(needed - set(arguments))
        if missing:
            raise Unsuitable(f"needs {', '.join(missing)}, which the records have no field for")
        taken = {name: value for name, value in arguments.items() if takes_all or name in names}
        return numbers(function(**taken), len(arguments["completions"]))

    return call


CALLS = {"plain": plain, "reward": reward}


def numbers(returned: Any, count: int) -> list[float | str]:
    """What a reward function returned, as numbers; in place of what is none a text that says so.

    Raises:
        Unsuitable: they are not `count`.
    """
    values = returned.tolist() if hasattr(returned, "tolist") else returned
    if not _is_list(values):
        raise Unsuitable(f"returned {type(returned).__name__} and not a list of {count} numbers")
    if len(values) != count:
        raise Unsuitable(f"returned {len(values)} numbers for {count} completions")
    return [_number(value) for value in values]


def _is_list(value: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _number(value: Any) -> float | str:
    if hasattr(value, "item"):  # a scalar of numpy or torch
        value = value.item()
    if not isinstance(value, (int, float)):
        return f"returned {value!r:.80}, which is no number"
    try:
        number = float(value)
    except OverflowError:
        return "returned a number that is too large"
    return number if math.isfinite(number) else f"returned {number}"


def brief(error: BaseException) -> str:
    """One line: what went wrong, and where."""
    said = " ".join(str(error).split())[:LONGEST_MESSAGE]
    if isinstance(error, Unsuitable):
        return said
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {said}{place}" if said else f"{type(error).__name__}{place}"


def _own_pipes() -> tuple[TextIO, TextIO]:
    """Orders and answers, on descriptors that the function does not print to, read from, or hand on."""
    orders, answers = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return os.fdopen(orders, "r", encoding="utf-8"), os.fdopen(answers, "w", encoding="utf-8")


def _tell(answers: TextIO, answer: Mapping[str, Any]) -> None:
    answers.write(dumps(answer) + "\n")
    answers.flush()


def _limit(limits: Mapping[str, Any]) -> None:
    """What each process of the worker may use."""
    memory = limits["memory_mib"] << 20
    wanted = {
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_FSIZE: limits["file_mib"] << 20,
        resource.RLIMIT_NOFILE: limits["open_files"],
        resource.RLIMIT_CORE: 0,
    }
    # It counts all that the user runs, so that it bounds a fork bomb until that is seen, and no more.
    if limits["user_tasks"] is not None:
        wanted[resource.RLIMIT_NPROC] = limits["user_tasks"]
    for kind, most in wanted.items():
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))


def _allow_cpu(seconds: int) -> None:
    """So much more than has been used."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    most = math.ceil(used.ru_utime + used.ru_stime + seconds)
    resource.setrlimit(
        resource.RLIMIT_CPU, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard)
    )


def _end_with(parent: int, folder: Path) -> None:
    """In the middle of a call, too."""
    while os.getppid() == parent:
        time.sleep(PARENT_SECONDS)
    _end(folder)


def _end(folder: Path) -> None:
    """Nobody is left who orders or reads: end, with all that was started, and with its folder."""
    shutil.rmtree(folder, ignore_errors=True)
    os.killpg(0, signal.SIGKILL)
