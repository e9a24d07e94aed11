"""Loading a checkpoint into pieces of any layout: plan, read and hash, and only then change live tensors.

All ranks go through the same steps together. Bad input (the checkpoint is of another model) is raised on
all of them; damage makes all of them turn to the next older checkpoint.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from llmscale.checkpoint.agreement import Agreement
from llmscale.checkpoint.coverage import coverage, stored_faults
from llmscale.checkpoint.errors import CheckpointError
from llmscale.checkpoint.hashed_reader import HashedShardReader
from llmscale.checkpoint.hashing import THREADS, check_size
from llmscale.checkpoint.manifest import JsonObject, Manifest, ShardEntry, TensorEntry
from llmscale.checkpoint.shards import DTYPE_NAMES, HostImage, ShardLayout, Slot
from llmscale.checkpoint.store import Checkpoint, locate
from llmscale.config.problems import InputError, Problem
from llmscale.model.regions import Box, Piece

OPTIMIZER = "optimizer."


@dataclass(frozen=True)
class Loaded:
    """A checkpoint whose tensors are now in the pieces."""

    step: int
    path: Path
    progress: JsonObject
    description: JsonObject
    passed_over: tuple[str, ...] = ()
    """What was wrong with newer checkpoints; empty where the newest was loaded."""
    set_aside: tuple[str, ...] = ()
    """Folders taken out of the line of steps on this start, by their new names."""


Accept = Callable[[Manifest], Sequence[Problem]]
"""Says, on rank 0 and before any tensor changes, what about a checkpoint does not fit this run."""


@dataclass(frozen=True)
class Read:
    """`part` of a stored box goes to piece number `piece`."""

    piece: int
    shard: int
    slot: Slot
    part: Box


def load_first_sound(
    agreement: Agreement,
    candidates: Sequence[Checkpoint],
    pieces: Sequence[Piece],
    image: HostImage,
    accept: Accept | None = None,
    ignored: tuple[str, ...] = (),
) -> tuple[Loaded | None, list[str]]:
    """Load the first of `candidates` (rank 0's list counts) that is sound on all ranks.

    Returns it, or None, and what was wrong with those before it.

    `image` has a place for each piece; what is read is staged there. Stored tensors whose names begin with
    one of `ignored` need not be wanted by any rank.

    Raises:
        InputError: the checkpoint holds another model than the pieces.
    """
    queue, passed_over = list(candidates), []
    while True:
        chosen = agreement.decide(None, lambda _: _announce(queue))
        passed_over += chosen["unusable"]
        if "path" not in chosen:
            return None, passed_over
        folder, manifest = Path(chosen["path"]), Manifest.model_validate_json(chosen["manifest"])
        faults = _load(agreement, folder, manifest, pieces, image, accept, ignored)
        if not faults:
            return Loaded(manifest.step, folder, manifest.progress, manifest.description), passed_over
        passed_over.append(f"{folder.name}: " + "; ".join(faults))


def _announce(queue: list[Checkpoint]) -> dict[str, Any]:
    """Rank 0: the next checkpoint to try. Sends the manifest, so that all ranks work from the same one."""
    unusable = []
    while queue:
        found = queue.pop(0)
        if found.state == "committed" and found.manifest is not None:
            text = found.manifest.to_bytes().decode()
            return {"path": str(found.path), "manifest": text, "unusable": unusable}
        unusable.append(f"{found.path.name}: {found.reason}")
    return {"unusable": unusable}


def _load(
    agreement: Agreement,
    folder: Path,
    manifest: Manifest,
    pieces: Sequence[Piece],
    image: HostImage,
    accept: Accept | None,
    ignored: tuple[str, ...],
) -> list[str]:
    """Load one checkpoint on all ranks. Returns what is damaged: then no live tensor has changed."""
    reads, problems = plan_reads(manifest, pieces)
    mine = {
        "problems": problems,
        "wanted": [(piece.name, piece.start, tuple(piece.data.shape)) for piece in pieces],
    }
    verdict = agreement.decide(mine, lambda ranks: _judge(folder, manifest, ranks, accept, ignored))
    if verdict["problems"]:
        raise InputError([Problem(*problem) for problem in verdict["problems"]])
    if verdict["faults"]:
        return verdict["faults"]
    faults = agreement.attempt(lambda: _stage(folder, manifest, reads, pieces, image.views))
    if not faults:
        image.copy_to(pieces)
    return faults


def plan_reads(manifest: Manifest, pieces: Sequence[Piece]) -> tuple[list[Read], list[tuple[str, str, str]]]:
    """Which parts of which stored boxes fill the pieces, and where pieces and checkpoint do not fit."""
    reads: list[Read] = []
    problems: list[tuple[str, str, str]] = []
    slots: dict[str, list[tuple[int, Slot]]] = {}
    for index, piece in enumerate(pieces):
        entry = manifest.tensors.get(piece.name)
        if entry is None:
            problems.append((piece.name, "missing", "is in the model and not in the checkpoint"))
            continue
        problem = _mismatch(piece, entry)
        if problem:
            problems.append((piece.name, *problem))
            continue
        if piece.name not in slots:
            slots[piece.name] = [
                (box.shard, Slot(piece.name, entry.dtype, Box(box.start, box.size))) for box in entry.boxes
            ]
        for shard, slot in slots[piece.name]:
            part = slot.box.intersection(piece.box)
            if part is not None:
                reads.append(Read(index, shard, slot, part))
    return reads, list(dict.fromkeys(problems))


def _mismatch(piece: Piece, entry: TensorEntry) -> tuple[str, str] | None:
    if entry.shape != piece.shape:
        return str(
            list(entry.shape)
        ), f"has this shape in the checkpoint and {list(piece.shape)} in the model"
    if entry.dtype != DTYPE_NAMES[piece.data.dtype]:
        return (
            entry.dtype,
            f"is of this type in the checkpoint and of {DTYPE_NAMES[piece.data.dtype]} in the model",
        )
    return None


def _judge(
    folder: Path,
    manifest: Manifest,
    ranks: Sequence[Mapping[str, Any]],
    accept: Accept | None,
    ignored: tuple[str, ...],
) -> dict[str, Any]:
    """Rank 0: does it hold this model, all of it and nothing else? And are all of its files there?"""
    problems = (
        [(problem.key, str(problem.value), problem.message) for problem in accept(manifest)] if accept else []
    )
    problems += dict.fromkeys(tuple(problem) for rank in ranks for problem in rank["problems"])
    wanted: dict[str, set[tuple[tuple[int, ...], tuple[int, ...]]]] = {}
    for rank in ranks:
        for name, start, size in rank["wanted"]:
            wanted.setdefault(name, set()).add((tuple(start), tuple(size)))
    for name, entry in manifest.tensors.items():
        if name.startswith(ignored):
            continue
        if name not in wanted:
            problems.append((name, "extra", "is in the checkpoint and not in the model"))
        elif not problems and coverage(entry.shape, (Box(*box) for box in wanted[name])).gaps:
            problems.append(
                (name, "partly wanted", "is in the checkpoint, and no rank takes all of its elements")
            )
    faults = stored_faults(manifest.tensors)
    faults += [fault for shard in manifest.shards for fault in check_size(folder, shard)]
    return {"problems": problems, "faults": faults}


def _stage(
    folder: Path, manifest: Manifest, reads: Sequence[Read], pieces: Sequence[Piece], places: Sequence[Tensor]
) -> list[str]:
    """Read everything this rank wants into its places.

    Raises:
        DamagedCheckpoint: unreadable, or not what the manifest says.
    """
    layouts = ShardLayout.of_shards(manifest)
    by_shard: dict[int, list[Read]] = {}
    filled = [0] * len(pieces)
    for read in reads:
        by_shard.setdefault(read.shard, []).append(read)
    with ThreadPoolExecutor(THREADS) as pool:
        for shard, of_shard in by_shard.items():
            of_shard.sort(key=lambda read, layout=layouts[shard]: layout.byte_range(read.slot, read.part))
            reader = _reader(folder, manifest.shards[shard], layouts[shard], of_shard, pool)
            try:
                for read in of_shard:
                    inside = read.part.shifted(tuple(-start for start in pieces[read.piece].start))
                    reader.read(read.slot, read.part, places[read.piece][inside.slices])
                    filled[read.piece] += read.part.volume
            finally:
                reader.close()
    return [
        f"{piece.name}: {piece.data.numel() - count} elements of the box at {piece.start} are not stored"
        for piece, count in zip(pieces, filled)
        if count != piece.data.numel()
    ]


def _reader(
    folder: Path, shard: ShardEntry, layout: ShardLayout, reads: Sequence[Read], pool: ThreadPoolExecutor
) -> HashedShardReader:
    wanted: set[int] = set()
    for read in reads:
        start, stop = layout.byte_range(read.slot, read.part)
        wanted.update(range(start // shard.block_bytes, -(-stop // shard.block_bytes)))
    return HashedShardReader(folder, shard, layout, wanted, pool)


def load_weights(
    path: Path,
    pieces: Sequence[Piece],
    agreement: Agreement,
    accept: Accept | None = None,
    without: Sequence[str] = (),
) -> Loaded:
    """Fill pieces (weights only) from a checkpoint, or from the newest sound one of a run; for a new run.

    What is stored under the names `without` is not taken.

    Raises:
        InputError: it holds another model. CheckpointError: nothing there, or nothing sound.
    """
    candidates: list[Checkpoint] = []

    def look(_: list[None]) -> int:
        candidates.extend(reversed(locate(path)))
        return len(candidates)

    agreement.decide(None, look)
    loaded, passed_over = load_first_sound(
        agreement, candidates, pieces, HostImage(pieces), accept, (OPTIMIZER, *without)
    )
    if loaded is None:
        raise CheckpointError(f"{path}: no sound checkpoint: " + "; ".join(passed_over))
    return loaded
