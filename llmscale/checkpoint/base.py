"""The weights that a run with few trained ones stands on: its checkpoints hold those, and name these.

A base is one committed checkpoint or one Hugging Face folder. Its identity is exact, whatever its name: of a
checkpoint the hash of its manifest, which has those of all of its blocks; of a folder the hash of its weight
files' bytes, because sizes and headers stay the same when somebody trains on and exports into it once more.
Nothing here imports torch.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from llmscale.checkpoint.errors import CheckpointError, DamagedCheckpoint
from llmscale.checkpoint.files import read_small
from llmscale.checkpoint.hashing import hash_file
from llmscale.checkpoint.huggingface_folder import is_hugging_face_folder, weight_files
from llmscale.checkpoint.manifest import MANIFEST, Manifest
from llmscale.checkpoint.store import MANIFEST_LIMIT, Checkpoint, locate
from llmscale.config.problems import InputError, Problem

DESCRIBED = "base"
"""Where a manifest's description names it."""
REFERENCE = "reference"
"""Where it names, in the same way, the weights that preferences were compared with."""


@dataclass(frozen=True)
class Base:
    path: Path
    """Absolute: a checkpoint's own folder, or a Hugging Face folder."""
    identity: str
    """SHA-256."""

    def described(self) -> dict[str, JsonValue]:
        return {"path": str(self.path), "identity": self.identity}

    @classmethod
    def in_description(cls, description: Mapping[str, JsonValue], where: str = DESCRIBED) -> "Base | None":
        """The base of the run that made a checkpoint; None of one that has all of its weights.

        Raises:
            DamagedCheckpoint: it is not as it is written.
        """
        found = description.get(where)
        if found is None:
            return None
        if not isinstance(found, dict) or found.keys() != {"path", "identity"}:
            raise DamagedCheckpoint(f"its {where} is described as {found!r}")
        return cls(Path(str(found["path"])), str(found["identity"]))

    def moved_to(self, place: Path) -> "Base":
        """The same weights elsewhere: a Hugging Face folder, a checkpoint, or the one of a run that has them.

        Raises:
            InputError: they are not there.
        """
        try:
            found = _same_weights(_places(place), self)
        except CheckpointError as error:
            raise InputError([Problem("--base", place, str(error))]) from None
        if found is None:
            message = f"has other weights than {self.path} had, which this was trained on"
            raise InputError([Problem("--base", place, message)])
        return found

    def check(self) -> None:
        """
        Raises:
            DamagedCheckpoint: it has gone, or is not what it was.
        """
        self.check_presence()
        if identity_of(self.path) != self.identity:
            raise DamagedCheckpoint(
                f"{self.path}, which it was trained on, has other weights now: put the former ones back there"
            )

    def check_presence(self) -> None:
        """
        Raises:
            DamagedCheckpoint: it has gone.
        """
        if not self.path.is_dir():
            raise DamagedCheckpoint(
                f"{self.path}, which it was trained on, has gone: put it back there, or name the folder "
                "where it is now with --base (to train on: train.init_from)"
            )


def identity_of(place: Path) -> str:
    """Of a checkpoint or of a Hugging Face folder, whose weights are read for it.

    Raises:
        CheckpointError, InputError: it cannot be read.
    """
    if not is_hugging_face_folder(place):
        return hashlib.sha256(read_small(place / MANIFEST, MANIFEST_LIMIT)).hexdigest()
    whole = hashlib.sha256()
    for path in weight_files(place):
        whole.update(bytes.fromhex(hash_file(path)))
    return whole.hexdigest()


def find_base(source: Path, known: Base | None) -> Base:
    """What a run that `train.init_from = source` names begins from, or goes on with.

    Args:
        known: what the run has begun from, if it has: a run in `source` may have gone on since.

    Raises:
        InputError: it is not there any more. CheckpointError: nothing is there.
    """
    places = _places(source)
    if known is None:
        return Base(places[-1].absolute(), identity_of(places[-1]))
    found = _same_weights(places, known)
    if found is not None:
        return found
    message = (
        f"has not the weights that this run was begun from ({known.path} at that time), and what it has "
        "trained fits no others: put them back, or start a new run.name"
    )
    raise InputError([Problem("train.init_from", source, message)])


def _same_weights(places: Sequence[Path], known: Base) -> Base | None:
    # The one that was taken is most likely where it was.
    for place in sorted(places, key=lambda place: place.absolute() != known.path):
        if identity_of(place) == known.identity:
            return Base(place.absolute(), known.identity)
    return None


def on_moved_base(manifest: Manifest, place: Path | None) -> Manifest:
    """What a checkpoint says, with its base in the folder that a user names; without one as it is.

    Raises:
        InputError: the base's weights are not there, or the checkpoint has all of its own.
    """
    if place is None:
        return manifest
    base = Base.in_description(manifest.description)
    if base is None:
        raise InputError([Problem("--base", place, "is not needed: the checkpoint has all of its weights")])
    described = manifest.description | {DESCRIBED: base.moved_to(place).described()}
    return manifest.model_copy(update={"description": described})


def _places(source: Path) -> Sequence[Path]:
    """The Hugging Face folder or the committed checkpoints that a path means, the newest last.

    Raises:
        CheckpointError: there are none.
    """
    if is_hugging_face_folder(source):
        return [source]
    committed = [found.path for found in locate(source) if found.state == "committed"]
    if not committed:
        raise CheckpointError(f"{source}: has no committed checkpoint")
    return committed


def newest_committed(source: Path) -> Checkpoint | None:
    """A run's or checkpoint's, None where there is none."""
    try:
        committed = [found for found in locate(source) if found.state == "committed"]
    except CheckpointError:
        return None
    return committed[-1] if committed else None
