"""`llmscale checkpoint verify --deep`: what hashes cannot tell."""

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llmscale.checkpoint.manifest import MANIFEST, MARKER, Manifest, ShardEntry, marker_of
from llmscale.checkpoint.shards import ShardLayout
from llmscale.commands.checkpoint import verify_command
from llmscale.config.problems import InputError
from tests.distributed.trainings import TP2_PP2, Place


def verify(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-m", "llmscale", "checkpoint", "verify", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200)


def commit_by_hand(folder: Path, change: Callable[[Manifest], Manifest]) -> None:
    """Put another manifest into a committed checkpoint, with a marker that fits it."""
    manifest = change(Manifest.model_validate_json((folder / MANIFEST).read_bytes()))
    data = manifest.to_bytes()
    (folder / MANIFEST).write_bytes(data)
    (folder / MARKER).write_bytes(marker_of(manifest, data).to_bytes())


def alter_weights(folder: Path) -> None:
    """Make one matrix of a checkpoint a tenth larger, and have all hashes agree with it."""

    def altered(manifest: Manifest) -> Manifest:
        shards = list(manifest.shards)
        for index, layout in enumerate(ShardLayout.of_shards(manifest)):
            data = bytearray((folder / shards[index].file).read_bytes())
            for slot, offset in layout.offsets.items():
                if slot.name == "model.layers.0.mlp.down_proj.weight":
                    values = torch.frombuffer(data, dtype=torch.float32, count=slot.box.volume, offset=offset)
                    values.mul_(1.1)
            (folder / shards[index].file).write_bytes(data)
            size = shards[index].block_bytes
            blocks = [data[start : start + size] for start in range(0, len(data), size)]
            shards[index] = ShardEntry(
                file=shards[index].file,
                byte_count=len(data),
                block_bytes=size,
                blocks=tuple(hashlib.sha256(block).hexdigest() for block in blocks),
            )
        return manifest.model_copy(update={"shards": tuple(shards)})

    commit_by_hand(folder, altered)


def without_fingerprint(manifest: Manifest) -> Manifest:
    progress = {key: value for key, value in manifest.progress.items() if key != "fingerprint"}
    return manifest.model_copy(update={"progress": progress})


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three steps of four ranks: as saved, altered, and without a fingerprint."""
    place = Place.make(tmp_path_factory.mktemp("deep"))
    options = ("train.steps=3", "checkpoint.every=1", "checkpoint.keep_last=3")
    folder = place.uninterrupted("run", *TP2_PP2, *options).folder / "checkpoints"
    alter_weights(folder / "step-00000002")
    commit_by_hand(folder / "step-00000003", without_fingerprint)
    return folder


def test_altered_weights_are_caught_in_one_process(checkpoints: Path) -> None:
    assert verify(checkpoints).stdout.count("sound") == 3, "the hashes must agree for this test to be one"
    deep = verify(checkpoints, "--deep")
    assert deep.returncode == 1, deep
    text = deep.stdout.replace("\n", " ")
    first, second, third = (text.partition(f"step {step}, ")[2] for step in (1, 2, 3))
    assert "sound, and computes as saved" in first.partition("step 2")[0], text
    assert "not confirmed" in second.partition("step 3")[0] and "give another" in second, text
    assert "no fingerprint" in third


@pytest.mark.parametrize(
    "layout", ["--own-layout", pytest.param("parallel.tensor=2", marks=pytest.mark.soak)]
)
def test_other_layouts_confirm(checkpoints: Path, layout: str) -> None:
    deep = verify(checkpoints / "step-00000001", "--deep", layout)
    assert deep.returncode == 0 and "computes as saved" in deep.stdout, deep


def test_a_layout_that_does_not_fit_is_bad_input(checkpoints: Path) -> None:
    for layout, deep in (
        ("parallel.tensor=3", True),
        ("parallel.tensors=2", True),
        ("parallel.tensor=2", False),
    ):
        with pytest.raises(InputError, match="parallel"):
            verify_command(checkpoints / "step-00000001", [layout], deep)
