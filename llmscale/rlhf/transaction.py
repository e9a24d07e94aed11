"""One commit for all that a step has changed: the checkpoints of actor and critic, and the driver's state.

The checkpoints are written first, each whole or not at all, then the answers that are written and not yet
learned from, if there are some. The file that names them comes last, so a run goes on from a step of which
everything is there, or from the one before.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from llmscale.checkpoint.manifest import MANIFEST
from llmscale.data.files import replace_file

FOLDER = "transactions"
REPLAY = ".safetensors"
KEPT = 2


@dataclass(frozen=True)
class Transaction:
    step: int
    checkpoints: Mapping[str, str]
    """Of each role that learns: SHA-256 of the manifest of its checkpoint of this step."""
    state: Mapping[str, JsonValue]
    """The driver's: position in the prompts, coefficient of the divergence, and what it counts."""
    replay: bytes | None = None
    """Answers that wait to be learned from (`llmscale.rlhf.replay`); None: there are none."""


def manifest_hash(checkpoint: Path) -> str:
    return hashlib.sha256((checkpoint / MANIFEST).read_bytes()).hexdigest()


def commit(run_folder: Path, transaction: Transaction) -> None:
    """Write it, and forget those before the last two."""
    content: dict[str, Any] = {
        "step": transaction.step,
        "checkpoints": dict(transaction.checkpoints),
        "state": dict(transaction.state),
    }
    path, replay = _path(run_folder, transaction.step), transaction.replay
    if replay is not None:
        content["replay"] = hashlib.sha256(replay).hexdigest()
        with replace_file(path.with_suffix(REPLAY)) as file:
            file.write(replay)
    with replace_file(path) as file:
        file.write(json.dumps(content, indent=2).encode() + b"\n")
    for old in _files(run_folder)[:-KEPT]:
        old.unlink()
    _forget_replays(run_folder)


def _forget_replays(run_folder: Path) -> None:
    """Of which the transaction has gone, or never came."""
    kept = {file.stem for file in _files(run_folder)}
    for replay in (run_folder / FOLDER).glob(f"step-*{REPLAY}"):
        if replay.stem not in kept:
            replay.unlink()


def newest(run_folder: Path, folders: Mapping[Any, Path], before: int | None = None) -> Transaction | None:
    """The newest of which every checkpoint is there as it was; None where there is none.

    Args:
        folders: where each role that learns has its checkpoints, by its name.
        before: only those of earlier steps.
    """
    for file in reversed(_files(run_folder)):
        found = _read(file, whole=True)
        if found is not None and (before is None or found.step < before) and _is_whole(found, folders):
            return found
    return None


def kept_steps(run_folder: Path) -> list[int]:
    """Steps that transactions still name."""
    return [found.step for file in _files(run_folder) if (found := _read(file)) is not None]


def _is_whole(transaction: Transaction, folders: Mapping[Any, Path]) -> bool:
    if transaction.checkpoints.keys() != folders.keys():
        return False
    for role, folder in folders.items():
        checkpoint = folder / f"step-{transaction.step:08d}"
        try:
            if manifest_hash(checkpoint) != transaction.checkpoints[role]:
                return False
        except OSError:
            return False
    return True


def _read(file: Path, whole: bool = False) -> Transaction | None:
    """
    Args:
        whole: with the replay, which must be as it was.
    """
    try:
        found = json.loads(file.read_bytes())
        replay = _replay(file, found["replay"]) if whole and "replay" in found else None
        return Transaction(int(found["step"]), found["checkpoints"], found["state"], replay)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _replay(file: Path, expected: str) -> bytes:
    """
    Raises:
        ValueError: it is not what was written.
    """
    replay = file.with_suffix(REPLAY).read_bytes()
    if hashlib.sha256(replay).hexdigest() != expected:
        raise ValueError("the answers that wait are damaged")
    return replay


def _files(run_folder: Path) -> Sequence[Path]:
    return sorted((run_folder / FOLDER).glob("step-*.json"))


def _path(run_folder: Path, step: int) -> Path:
    return run_folder / FOLDER / f"step-{step:08d}.json"
