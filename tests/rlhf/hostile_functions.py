"""Reward functions that go wrong in every way, for tests of the subprocess that they run in."""

import ctypes
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def length(prompts: list[str], completions: list[str], **fields: Any) -> list[int]:
    return [len(completion) for completion in completions]


def doubled(completions: list[str], prompts: list[str], factor: list[int]) -> list[int]:
    return [len(completion) * one for completion, one in zip(completions, factor)]


def seen(prompts: Any, completions: Any, **fields: Any) -> list[str]:
    return [repr((prompts, completions, sorted(fields.items())))]


def choosy(prompts: list[str], completions: list[str], **fields: Any) -> list[float | None]:
    return [None if completion == "none" else 1.0 for completion in completions]


def obedient(prompts: list[str], completions: list[str], **fields: Any) -> Any:
    """Does what the first completion says that is an order."""
    for completion in completions:
        if completion in ORDERS:
            return ORDERS[completion](completions)
    return [1.0] * len(completions)


def _raise(_: Any) -> None:
    raise KeyError("no such thing")


def _crash(_: Any) -> None:
    print("these are my last words", file=sys.stderr)
    ctypes.string_at(0)


def _hang(_: Any) -> None:
    print("going to sleep", flush=True)
    time.sleep(1000)


def _spin(_: Any) -> None:
    while True:
        pass


def _eat(_: Any) -> list[int]:
    return [len(bytearray(1 << 30))]


def _eat_together(_: Any) -> None:
    for _child in range(6):
        if not os.fork():
            kept = bytearray(b"x" * (100 << 20))
            time.sleep(1000 + len(kept) * 0)
    time.sleep(1000)


def _fork_bomb(_: Any) -> None:
    while True:
        os.fork()


def _leave_a_daemon(completions: list[str]) -> list[float]:
    """Forks twice, in sessions of their own, and goes on."""
    if not os.fork():
        os.setsid()
        if not os.fork():
            Path(os.environ["MARKS"], str(os.getpid())).touch()
            time.sleep(1000)
        os._exit(0)
    time.sleep(0.2)
    return [0.0] * len(completions)


def _fill_disk(_: Any) -> None:
    with Path("big").open("wb") as file:
        for _block in range(100):
            file.write(bytes(1 << 20))


def _open_many(_: Any) -> list[int]:
    return [len([Path(os.devnull).open() for _ in range(1000)])]


def _talk(completions: list[str]) -> list[float]:
    for _line in range(20_000):
        print("x" * 1000)
        print("y" * 100, file=sys.stderr)
    return [0.5] * len(completions)


def _answer_in_place_of_the_worker(_: Any) -> None:
    for descriptor in range(3, 20):
        try:
            os.write(descriptor, b"[[[ nothing\n")
        except OSError:
            continue


def _ask(_: Any) -> None:
    input()


def _answers(*values: Any) -> Any:
    return lambda completions: list(values)


ORDERS = {
    "raise": _raise,
    "exit": lambda _: sys.exit(0),
    "vanish": lambda _: os._exit(0),
    "crash": _crash,
    "hang": _hang,
    "spin": _spin,
    "eat": _eat,
    "eat together": _eat_together,
    "fork bomb": _fork_bomb,
    "daemon": _leave_a_daemon,
    "fill disk": _fill_disk,
    "open many": _open_many,
    "talk": _talk,
    "scribble": _answer_in_place_of_the_worker,
    "ask": _ask,
    "child": lambda completions: [float(subprocess.run(["true"]).returncode == 0)] * len(completions),
    "too few": lambda completions: [1.0] * (len(completions) - 1),
    "nothing": lambda _: None,
    "text": lambda completions: ["1.0"] * len(completions),
    "not a number": lambda completions: [float("nan")] * len(completions),
    "infinite": lambda completions: [float("inf")] * len(completions),
    "none": lambda completions: [None] * len(completions),
    "huge": lambda completions: [10**400] * len(completions),
    "true": lambda completions: [True] * len(completions),
    "generator": lambda completions: (1.0 for _ in completions),
}


def positional(prompts: Any, completions: Any, /) -> list[float]:
    return []


def other_arguments(text: str) -> float:
    return 0.0


async def later(prompts: Any, completions: Any) -> list[float]:
    return []


not_a_function = 3
