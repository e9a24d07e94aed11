"""The checkpoints of a run as folders: which are committed, how one becomes so, and how they go away.

    checkpoints/
        epochs/                              see `llmscale.checkpoint.epochs`
        step-00000100/                       committed: manifest.json, shards, COMMITTED
        .step-00000200.<save id>.partial/    being written
        .step-00000050.<save id>.deleting/   being removed
        .step-00000150.<id>.set-aside/       damaged or outside history; kept for people to look at

Nothing here imports torch, so that listing is quick.
"""

import hashlib
import os
import re
import uuid
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llmscale.checkpoint.epochs import Epochs, read_epochs
from llmscale.checkpoint.errors import CheckpointError, DamagedCheckpoint, StaleWriter
from llmscale.checkpoint.files import open_folder, read_small, remove_folder, sync_folder, write_new
from llmscale.checkpoint.hashing import check_shard, check_size
from llmscale.checkpoint.manifest import MANIFEST, MARKER, Manifest, Marker, marker_of, parse

PENDING_MARKER = ".COMMITTED.pending"
MARKER_LIMIT = 4096
MANIFEST_LIMIT = 1 << 30
_STEP = re.compile(r"^step-(\d{8,})$")
_LITTER = re.compile(r"^\.step-(\d{8,})\.[0-9a-f]{32}\.(partial|deleting)$")

State = Literal["committed", "uncommitted", "damaged", "fenced"]


@dataclass(frozen=True)
class Checkpoint:
    """A folder `step-N` as far as its marker and manifest tell; shards are not read."""

    path: Path
    step: int
    state: State
    reason: str = ""
    """Why it is not committed."""
    manifest: Manifest | None = None
    """There unless the state is damaged."""


@dataclass(frozen=True)
class Store:
    """The folder `checkpoints` of a run."""

    folder: Path

    def partial(self, step: int, save_id: str) -> Path:
        return self._hidden(step, save_id, "partial")

    def committed(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _hidden(self, step: int, save_id: str, kind: str) -> Path:
        return self.folder / f".step-{step:08d}.{save_id}.{kind}"

    def checkpoints(self) -> list[Checkpoint]:
        """All folders `step-N`, by step."""
        epochs = read_epochs(self.folder)
        return sorted((inspect(path, epochs) for path in self._step_folders()), key=lambda found: found.step)

    def find(self, step: int) -> Checkpoint | None:
        path = self.committed(step)
        return inspect(path, read_epochs(self.folder)) if os.path.lexists(path) else None

    def _step_folders(self) -> Iterator[Path]:
        if self.folder.is_dir():
            yield from (path for path in self.folder.iterdir() if _STEP.match(path.name))

    def clean(self) -> list[str]:
        """Remove what saves and removals that died have left. Returns the names.

        Only what is provably ours goes: folders under our hidden names, which were never committed or already
        given up, and folders of a step that hold the pending marker of their own manifest.
        """
        removed = []
        for path in sorted(self.folder.iterdir()) if self.folder.is_dir() else []:
            if path.is_symlink() or not path.is_dir():
                continue
            match = _LITTER.match(path.name) or _STEP.match(path.name)
            if match and (path.name.startswith(".") or inspect(path).state == "uncommitted"):
                remove_folder(path, self._hidden(int(match[1]), uuid.uuid4().hex, "deleting"))
                removed.append(path.name)
        return removed

    def set_aside(self, found: Checkpoint) -> Path:
        """Take a folder out of the line of steps without losing a byte of it."""
        aside = self._hidden(found.step, uuid.uuid4().hex, "set-aside")
        found.path.rename(aside)
        sync_folder(self.folder)
        return aside

    def begin(self, step: int, save_id: str) -> Path:
        path = self.partial(step, save_id)
        path.mkdir(parents=True)
        return path

    def abandon(self, step: int, save_id: str) -> None:
        """Remove what a failed save has written; nothing to do where it is gone already."""
        # Two ranks may give a save up at once; then one of them finds the folder gone.
        with suppress(FileNotFoundError):
            remove_folder(self.partial(step, save_id), self._hidden(step, save_id, "deleting"))

    def commit(self, manifest: Manifest) -> Path:
        """Turn the partial folder, whose shards are durable, into the committed checkpoint of its step.

        The marker lies there under its pending name before the folder gets its final one, so a folder that
        died in between is known from one that has lost its marker. It gets its own final name through the
        folder opened before: should another writer have put a folder of the same name there meanwhile, the
        marker cannot land in that one.

        Raises:
            StaleWriter: the run has been started again since.
            OSError: the step exists already, or the disk refuses.
        """
        partial, final = self.partial(manifest.step, manifest.save_id), self.committed(manifest.step)
        data = manifest.to_bytes()
        folder = open_folder(partial)
        try:
            write_new(MANIFEST, [data], folder)
            write_new(PENDING_MARKER, [marker_of(manifest, data).to_bytes()], folder)
            os.fsync(folder)
            self.refuse_stale(manifest.epoch)
            partial.rename(final)
            try:
                sync_folder(self.folder)
                self.refuse_stale(manifest.epoch)
                os.rename(PENDING_MARKER, MARKER, src_dir_fd=folder, dst_dir_fd=folder)
                os.fsync(folder)
            except (OSError, StaleWriter):
                if final.exists() and os.path.samestat(final.stat(), os.fstat(folder)):
                    remove_folder(final, self._hidden(manifest.step, manifest.save_id, "deleting"))
                raise
        finally:
            os.close(folder)
        return final

    def refuse_stale(self, epoch: int) -> None:
        newest = read_epochs(self.folder).newest
        if newest != epoch:
            raise StaleWriter(
                f"this writer belongs to start {epoch} of the run, and start {newest} has taken over"
            )

    def prune(
        self, epoch: int, keep_last: int, keep_every: int | None, kept: Collection[int] = ()
    ) -> list[str]:
        """Remove committed checkpoints that newer ones supersede, but for the steps `kept`. Returns their
        names.

        Only checkpoints whose marker, manifest and shard sizes are right count as newer ones, and only such
        are removed: what is damaged, fenced or foreign is neither counted nor touched.
        """
        sound = [
            found for found in self.checkpoints() if found.state == "committed" and not size_faults(found)
        ]
        removed = []
        for found in sound[:-keep_last]:
            is_kept = found.step in kept or (keep_every and found.step % keep_every == 0)
            if is_kept or found.manifest is None:
                continue
            self.refuse_stale(epoch)
            remove_folder(found.path, self._hidden(found.step, found.manifest.save_id, "deleting"))
            removed.append(found.path.name)
        return removed


def inspect(path: Path, epochs: Epochs | None = None) -> Checkpoint:
    """What a folder is, by its marker and manifest."""
    match = _STEP.match(path.name)
    step = int(match[1]) if match else -1
    if path.is_symlink() or not path.is_dir():
        return Checkpoint(path, step, "damaged", "not a folder of its own")
    pending = not os.path.lexists(path / MARKER)
    try:
        if pending and not os.path.lexists(path / PENDING_MARKER):
            raise DamagedCheckpoint(f"{path}: has no {MARKER}")
        manifest = _read_manifest(path, PENDING_MARKER if pending else MARKER)
        if match and manifest.step != step:
            raise DamagedCheckpoint(f"{path}: is step {manifest.step} by its manifest")
    except DamagedCheckpoint as error:
        return Checkpoint(path, step, "damaged", str(error))
    if pending:
        return Checkpoint(path, manifest.step, "uncommitted", "the save died before its last move", manifest)
    if epochs is not None and epochs.fences(manifest.epoch, manifest.step):
        return Checkpoint(
            path, manifest.step, "fenced", "a later start of the run went on from before it", manifest
        )
    return Checkpoint(path, manifest.step, "committed", manifest=manifest)


def _read_manifest(path: Path, marker_name: str) -> Manifest:
    marker = parse(Marker, read_small(path / marker_name, MARKER_LIMIT), path / marker_name)
    data = read_small(path / MANIFEST, MANIFEST_LIMIT)
    if hashlib.sha256(data).hexdigest() != marker.manifest_sha256:
        raise DamagedCheckpoint(f"{path / MANIFEST}: is not the manifest that was committed")
    manifest = parse(Manifest, data, path / MANIFEST)
    if marker != marker_of(manifest, data):
        raise DamagedCheckpoint(f"{path / marker_name}: does not belong to the manifest")
    return manifest


def size_faults(found: Checkpoint) -> list[str]:
    """Shards that are missing or of another size than was saved."""
    shards = found.manifest.shards if found.manifest else ()
    return [fault for shard in shards for fault in check_size(found.path, shard)]


def verify(found: Checkpoint) -> list[str]:
    """Reread all bytes of a checkpoint and compare their hashes. Returns what is wrong, by file and range."""
    if found.manifest is None:
        return [found.reason]
    return [fault for shard in found.manifest.shards for fault in check_shard(found.path, shard)]


def locate(path: Path) -> list[Checkpoint]:
    """The checkpoints that a user's path means: a checkpoint, a run folder, or its `checkpoints`.

    Raises:
        CheckpointError: there are none.
    """
    if _STEP.match(path.name) or (path / MANIFEST).exists():
        if not path.is_dir():
            raise CheckpointError(f"{path}: no such checkpoint")
        return [inspect(path)]
    for folder in (path / "checkpoints", path):
        found = Store(folder).checkpoints()
        if found:
            return found
    raise CheckpointError(f"{path}: no checkpoint there")
