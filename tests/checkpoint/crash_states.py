"""Every state that a disk may be in after a power loss during saves, and whether the run goes on from it.

`python -m tests.checkpoint.crash_states [states for each prefix] [seed]` prints the table of the docs.
"""

import contextlib
import functools
import itertools
import logging
import math
import os
import random
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from llmscale.checkpoint import checkpointer as checkpointer_module
from llmscale.checkpoint.checkpointer import Checkpointer
from llmscale.checkpoint.errors import CheckpointError
from llmscale.checkpoint.store import Store, verify
from llmscale.config.schema import CheckpointSection
from llmscale.model.regions import Piece
from tests.checkpoint.recorded_disk import Disk, Fate, Operation, Recorder, read_tree, unsynced, write_tree
from tests.checkpoint.simulated_ranks import Board, ThreadAgreement

FOLDER = Path("runs") / "name" / "checkpoints"
OPTIONS = CheckpointSection(keep_last=1)
ROWS = 4
FATES: dict[str, tuple[Fate, ...]] = {"write": ("kept", "lost", "torn", "zeros")}
"""Of operations that are not synced; of all others: kept or lost."""


class CrashState(NamedTuple):
    prefix: int
    """How many operations had begun."""
    promised: int
    """Newest step that the program had been told is committed; 0 for none."""
    tree: dict[str, bytes | None]
    damage: str
    """What was lost, for people."""


def pieces_of(step: int, ranks: int = 1, rank: int = 0) -> list[Piece]:
    """One rank's rows of two matrices whose every element is the step."""
    share = ROWS // ranks
    return [
        Piece(name, (ROWS, 2), (rank * share, 0), torch.full((share, 2), float(step))) for name in ("a", "b")
    ]


def record_saves(root: Path, ranks: int, starts: Sequence[Sequence[int]]) -> Recorder:
    """The operations of a run from its very first folder on: each start resumes and saves these steps."""
    root.mkdir()
    recorder = Recorder(root)
    with pytest.MonkeyPatch.context() as patch:
        recorder.install(patch.setattr)
        patch.setattr(Store, "commit", _noted(Store.commit, recorder))
        for steps in starts:
            board = Board(threading.Barrier(ranks))
            agreement = functools.partial(ThreadAgreement, board=board)
            patch.setattr(checkpointer_module, "Agreement", agreement)
            with ThreadPoolExecutor(ranks) as pool:
                train = functools.partial(_train, root / FOLDER, ranks, steps)
                list(pool.map(train, range(ranks)))
    assert recorder.disk.tree() == read_tree(root), "the recorder has missed something"
    return recorder


def _noted(commit: Callable, recorder: Recorder) -> Callable:
    def noted(store: Store, manifest) -> Path:
        path = commit(store, manifest)
        recorder.note_commit(manifest.step)
        return path

    return noted


def _train(folder: Path, ranks: int, steps: Sequence[int], rank: int) -> None:
    checkpointer = Checkpointer(folder, rank, ranks, OPTIONS)
    checkpointer.load_newest(pieces_of(-1, ranks, rank))
    for step in steps:
        checkpointer.save(step, pieces_of(step, ranks, rank), {"step": step})
        outcome = checkpointer.wait()
        assert outcome is not None and outcome.state == "committed" and not outcome.reason, outcome


def crash_states(recorder: Recorder, for_each_prefix: int, seed: int) -> Iterator[CrashState]:
    """All different states, or a sample of `for_each_prefix` fates where a prefix has more."""
    chance = random.Random(seed)
    seen: set[tuple[int, int]] = set()
    for prefix in range(len(recorder.operations) + 1):
        begun = recorder.operations[:prefix]
        promised = max((step for at, step in recorder.committed if at <= prefix), default=0)
        for fates in _fates(begun, for_each_prefix, chance):
            tree = _disk_after(begun, fates).tree()
            key = (promised, hash(tuple(tree.items())))
            if key not in seen:
                seen.add(key)
                lost = [f"{begun[number]} {fate}" for number, fate in fates.items() if fate != "kept"]
                yield CrashState(prefix, promised, tree, "; ".join(lost) or "nothing lost")


def count_fates(operations: Sequence[Operation]) -> int:
    """How many combinations of fates all prefixes have, the same states among them."""
    return sum(
        math.prod(len(_choices(operations[number])) for number in unsynced(operations[:prefix]))
        for prefix in range(len(operations) + 1)
    )


def _choices(operation: Operation) -> tuple[Fate, ...]:
    return FATES.get(operation.kind, ("kept", "lost"))


def _fates(begun: Sequence[Operation], limit: int, chance: random.Random) -> Iterator[dict[int, Fate]]:
    """All combinations, or the plain ones (all, none, all but one, only one) and then random ones."""
    pending = unsynced(begun)
    choices = {number: _choices(begun[number]) for number in pending}
    if math.prod(map(len, choices.values())) <= limit:
        for combination in itertools.product(*choices.values()):
            yield dict(zip(pending, combination))
        return
    yield dict.fromkeys(pending, "kept")
    yield dict.fromkeys(pending, "lost")
    for number in pending:
        yield {**dict.fromkeys(pending, "lost"), number: "kept"}
        for fate in choices[number][1:]:
            yield {**dict.fromkeys(pending, "kept"), number: fate}
    for _ in range(limit):
        yield {number: chance.choice(options) for number, options in choices.items()}


def _disk_after(begun: Sequence[Operation], fates: dict[int, Fate]) -> Disk:
    disk = Disk()
    for number, operation in enumerate(begun):
        disk.apply(operation, fates.get(number, "kept"))
    return disk


def violation(state: CrashState, scratch: Path) -> str | None:
    """Start the run again on what the disk has kept; what is wrong with that, or None."""
    write_tree(state.tree, scratch)
    try:
        return _violation(state, scratch / FOLDER)
    except CheckpointError as error:
        return f"the run does not start: {error}"
    finally:
        shutil.rmtree(scratch)


def _violation(state: CrashState, folder: Path) -> str | None:
    checkpointer = Checkpointer(folder, 0, 1, OPTIONS)
    pieces = pieces_of(-1)
    loaded = checkpointer.load_newest(pieces)
    step = loaded.step if loaded else 0
    if step < state.promised:
        return f"step {state.promised} was committed, and the run goes on from {step}"
    if loaded is not None and not all((piece.data == step).all() for piece in pieces):
        return f"step {step} is mixed"
    if loaded is not None and (loaded.passed_over or loaded.set_aside):
        return f"step {step} is loaded, after {loaded.passed_over}, {loaded.set_aside}"
    unsound = [found.path.name for found in Store(folder).checkpoints() if verify(found)]
    if unsound:
        return f"{unsound} are there and not whole"
    litter = {path.name for path in folder.iterdir()} - {"epochs", *_step_names(folder)}
    if litter:
        return f"left over: {litter}"
    checkpointer.save(step + 1, pieces_of(step + 1), {})
    outcome = checkpointer.wait()
    if outcome is None or outcome.state != "committed":
        return f"the next save: {outcome}"
    return None


def _step_names(folder: Path) -> set[str]:
    return {found.path.name for found in Store(folder).checkpoints()}


def violations(recorder: Recorder, for_each_prefix: int, seed: int) -> tuple[int, list[str]]:
    """(states looked at, what is wrong with which). The states are on no real disk: nothing is synced."""
    count, found = 0, []
    with pytest.MonkeyPatch.context() as patch, quick_scratch() as scratch:
        patch.setattr(os, "fsync", lambda _: None)
        for state in crash_states(recorder, for_each_prefix, seed):
            count += 1
            wrong = violation(state, scratch / "disk")
            if wrong:
                found.append(f"after {state.prefix} operations ({state.damage}): {wrong}")
    return count, found


@contextlib.contextmanager
def quick_scratch() -> Iterator[Path]:
    """A folder in memory where the machine has one."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


def syncs(recorder: Recorder) -> list[int]:
    return [number for number, operation in enumerate(recorder.operations) if operation.kind == "sync"]


def without(recorder: Recorder, number: int) -> Recorder:
    """The same history with one `fsync` forgotten."""
    operations = recorder.operations[:number] + recorder.operations[number + 1 :]
    committed = [(at - (at > number), step) for at, step in recorder.committed]
    return Recorder(recorder.root, operations, committed)


def main(for_each_prefix: int, seed: int) -> None:
    logging.disable(logging.WARNING)
    print("| writers | saves | operations | combinations | states tried | not a whole checkpoint |")
    print("|---|---|---|---|---|---|")
    for ranks in (1, 2):
        with quick_scratch() as scratch:
            recorder = record_saves(scratch / "disk", ranks, [(1, 2), (3,)])
        count, found = violations(recorder, for_each_prefix, seed)
        operations = recorder.operations
        print(f"| {ranks} | 3 | {len(operations)} | {count_fates(operations):,} | {count:,} | {len(found)} |")
        for line in found[:10]:
            print("   ", line)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1 << 20, int(sys.argv[2]) if len(sys.argv) > 2 else 1)
