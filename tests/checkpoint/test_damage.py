"""Bit flips, truncation, swapped and stale shards, hostile manifests: caught before a live tensor changes."""

import json
import pickle
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from llmscale.checkpoint.epochs import claim_epoch
from llmscale.checkpoint.errors import CheckpointError
from llmscale.checkpoint.manifest import Manifest, marker_of
from llmscale.checkpoint.store import MANIFEST, MARKER, inspect
from llmscale.config.problems import InputError
from tests.checkpoint.checkpoint_layouts import deal, make_tensors
from tests.checkpoint.simulated_ranks import load, save

FILES = (MANIFEST, MARKER, "shard-00000.safetensors", "shard-00001.safetensors", "shard-00002.safetensors")
TRIALS = 400
SOAK_TRIALS = 10_000

Damage = Callable[[Path, random.Random], str]


def flip_a_bit(path: Path, choose: random.Random) -> str:
    file = path / choose.choice(FILES)
    data = bytearray(file.read_bytes())
    at = choose.randrange(len(data))
    data[at] ^= 1 << choose.randrange(8)
    file.write_bytes(data)
    return f"bit flipped at byte {at} of {file.name}"


def truncate(path: Path, choose: random.Random) -> str:
    file = path / choose.choice(FILES)
    size = choose.randrange(file.stat().st_size)
    with file.open("r+b") as opened:
        opened.truncate(size)
    return f"{file.name} cut to {size} bytes"


def swap_shards(path: Path, choose: random.Random) -> str:
    first, second = (path / name for name in choose.sample(FILES[2:], 2))
    first.rename(path / "other")
    second.rename(first)
    (path / "other").rename(second)
    return f"{first.name} and {second.name} swapped"


def stale_file(path: Path, choose: random.Random) -> str:
    name = choose.choice(FILES)
    shutil.copy(path.parent / "step-00000010" / name, path / name)
    return f"{name} of the step before"


def remove(path: Path, choose: random.Random) -> str:
    name = choose.choice(FILES)
    (path / name).unlink()
    return f"{name} removed"


def append(path: Path, choose: random.Random) -> str:
    name = choose.choice(FILES)
    with (path / name).open("ab") as file:
        file.write(b"\\0")
    return f"a byte more in {name}"


def damage_and_load(folder: Path, pristine: Path, trials: int, seed: int) -> Counter[str]:
    """Damage the newer of two steps, load: the older one must be there, bit for bit. Counts by kind."""
    choose, counts = random.Random(seed), Counter[str]()
    kinds: list[Damage] = [flip_a_bit] * 6 + [truncate] * 2 + [swap_shards, stale_file, remove, append]
    older = make_tensors(10)
    path = folder / "step-00000020"
    for trial in range(trials):
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(pristine, path)
        kind = choose.choice(kinds)
        what = kind(path, choose)
        counts[kind.__name__] += 1
        wanted = deal(older, choose.randrange(1, 3), trial, blank=True)
        for loaded, passed_over in load(folder, wanted):
            assert loaded is not None and loaded.step == 10, what
            assert len(passed_over) == 1 and passed_over[0].startswith("step-00000020"), what
        assert all((tensor == older[name]).all() for name, tensor in wanted.whole().items()), what
    return counts


@pytest.fixture
def two_steps(tmp_path: Path) -> tuple[Path, Path]:
    folder = tmp_path / "checkpoints"
    for step in (10, 20):
        save(folder, step, deal(make_tensors(step), 3, 1))
    pristine = tmp_path / "pristine"
    shutil.copytree(folder / "step-00000020", pristine)
    return folder, pristine


def test_damage_of_the_newest_step_is_always_caught(two_steps: tuple[Path, Path]) -> None:
    assert damage_and_load(*two_steps, TRIALS, seed=1).total() == TRIALS


@pytest.mark.soak
def test_much_damage_of_the_newest_step_is_always_caught(
    two_steps: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    counts = damage_and_load(*two_steps, SOAK_TRIALS, seed=2)
    assert counts.total() == SOAK_TRIALS
    with capsys.disabled():
        print("\n" + "; ".join(f"{kind} {count:,}" for kind, count in counts.most_common()))


def test_damage_of_the_only_step_changes_nothing(two_steps: tuple[Path, Path]) -> None:
    folder, pristine = two_steps
    choose = random.Random(3)
    shutil.rmtree(folder / "step-00000010")
    for trial in range(40):
        shutil.rmtree(folder / "step-00000020")
        shutil.copytree(pristine, folder / "step-00000020")
        what = choose.choice([flip_a_bit, truncate, swap_shards])(folder / "step-00000020", choose)
        wanted = deal(make_tensors(20), 2, trial, blank=True)
        assert all(loaded is None and passed_over for loaded, passed_over in load(folder, wanted)), what
        assert not any(tensor.any() for tensor in wanted.whole().values()), what


def rewrite(path: Path, change: Callable[[dict], None]) -> None:
    """Forge a manifest together with a marker that fits it."""
    content = json.loads((path / MANIFEST).read_bytes())
    change(content)
    data = json.dumps(content, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    manifest = Manifest.model_construct(
        save_id=content["save_id"], epoch=content["epoch"], step=content["step"]
    )
    (path / MANIFEST).write_bytes(data)
    (path / MARKER).write_bytes(marker_of(manifest, data).to_bytes())


def first_box(content: dict) -> dict:
    return content["tensors"]["model.embed_tokens.weight"]["boxes"][0]


FORGERIES: dict[str, Callable[[dict], None]] = {
    "parent": lambda content: content["shards"][0].update(file="../shard-00000.safetensors"),
    "absolute": lambda content: content["shards"][0].update(file="/etc/passwd"),
    "other name": lambda content: content["shards"][0].update(file="shard-00001.safetensors"),
    "no such shard": lambda content: first_box(content).update(shard=99),
    "negative start": lambda content: first_box(content).update(start=[-1, 0]),
    "outside": lambda content: first_box(content).update(start=[1000, 0]),
    "empty box": lambda content: first_box(content).update(size=[0, 1]),
    "dimensions": lambda content: first_box(content).update(start=[0], size=[1]),
    "type": lambda content: content["tensors"]["model.embed_tokens.weight"].update(dtype="O"),
    "unknown key": lambda content: content.update(code="import os"),
    "format": lambda content: content.update(format="llmscale-checkpoint-9"),
    "progress": lambda content: content.update(progress=[]),
    "hashes": lambda content: content["shards"][0].update(blocks=[]),
    "size": lambda content: content["shards"][0].update(byte_count=1 << 60),
    "step": lambda content: content.update(step=21),
    "twice": lambda content: content["tensors"]["model.norm.weight"]["boxes"].append(
        content["tensors"]["model.norm.weight"]["boxes"][0]
    ),
    "moved": lambda content: first_box(content).update(start=[0, 0], size=[1, 1]),
    "gone": lambda content: content["tensors"]["model.norm.weight"].update(boxes=[]),
    "NUL in a name": lambda content: content["shards"][0].update(file="shard-00000\0.safetensors"),
    "NaN": lambda content: content.update(saved_at=float("nan")),
    "infinite progress": lambda content: content["progress"].update(step=float("inf")),
    "huge number": lambda content: content.update(epoch=10**4000),
    "huge box": lambda content: first_box(content).update(size=[1 << 62, 1 << 62]),
    "negative size": lambda content: content["shards"][0].update(byte_count=-1),
    "huge blocks": lambda content: content["shards"][0].update(block_bytes=1 << 60),
    "no blocks": lambda content: content["shards"][0].update(block_bytes=0),
    "fraction": lambda content: content["shards"][0].update(
        byte_count=float(content["shards"][0]["byte_count"])
    ),
    "text for a number": lambda content: content.update(saved_at="now"),
    "deep": lambda content: content["progress"].update(deep=nested(400)),
    "pickle as a shard": lambda content: content["shards"][0].update(file="shard-00000.pt"),
}


def nested(depth: int) -> list:
    return [nested(depth - 1)] if depth else []


@pytest.mark.parametrize("forgery", FORGERIES)
def test_forged_manifests_are_refused(two_steps: tuple[Path, Path], forgery: str) -> None:
    folder, _ = two_steps
    outside = {path for path in folder.parent.rglob("*") if folder not in path.parents}
    rewrite(folder / "step-00000020", FORGERIES[forgery])
    wanted = deal(make_tensors(10), 2, 1, blank=True)
    for loaded, passed_over in load(folder, wanted):
        assert loaded is not None and loaded.step == 10
        assert len(passed_over) == 1 and "step-00000020" in passed_over[0]
    assert outside == {path for path in folder.parent.rglob("*") if folder not in path.parents}


OTHER_MODELS: dict[str, tuple[Callable[[dict], None], str]] = {
    "huge shape": (
        lambda content: content["tensors"]["model.norm.weight"].update(shape=[1 << 62]),
        "model.norm.weight",
    ),
    "a path for a name": (
        lambda content: content["tensors"].update(
            {"../../outside": content["tensors"].pop("model.norm.weight")}
        ),
        "../../outside",
    ),
}


@pytest.mark.parametrize("forgery", OTHER_MODELS)
def test_forged_manifests_of_another_model_are_refused_by_name(
    two_steps: tuple[Path, Path], forgery: str
) -> None:
    folder, _ = two_steps
    change, name = OTHER_MODELS[forgery]
    rewrite(folder / "step-00000020", change)
    wanted = deal(make_tensors(10), 2, 1, blank=True)
    with pytest.raises(InputError) as raised:
        load(folder, wanted)
    assert name in {problem.key for problem in raised.value.problems}
    assert not any(tensor.any() for tensor in wanted.whole().values())


def test_the_same_key_twice_is_refused(two_steps: tuple[Path, Path]) -> None:
    """Readers of JSON differ on which of the two counts; here neither does."""
    path = two_steps[0] / "step-00000020"
    data = (path / MANIFEST).read_bytes().replace(b'"step":20', b'"step":19,"step":20', 1)
    manifest = inspect(path).manifest
    assert manifest is not None
    (path / MANIFEST).write_bytes(data)
    (path / MARKER).write_bytes(marker_of(manifest, data).to_bytes())
    found = inspect(path)
    assert found.state == "damaged" and "not as it was written" in found.reason


class Bomb:
    """What a pickle may do when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", FILES)
def test_a_planted_pickle_does_not_run(two_steps: tuple[Path, Path], tmp_path: Path, name: str) -> None:
    folder, _ = two_steps
    fuse = tmp_path / "it has run"
    planted = pickle.dumps(Bomb(fuse))
    (folder / "step-00000020" / name).write_bytes(planted)
    for other in ("data.pkl", ".metadata", "shard-00000.pt"):
        (folder / "step-00000020" / other).write_bytes(planted)
        (folder / other).write_bytes(planted)
    wanted = deal(make_tensors(10), 2, 1, blank=True)
    assert all(loaded is not None and loaded.step == 10 for loaded, _ in load(folder, wanted))
    assert not fuse.exists()
    pickle.loads(planted)
    assert fuse.exists()  # it would have


def test_a_linked_folder_of_epochs_is_refused(two_steps: tuple[Path, Path], tmp_path: Path) -> None:
    """A new start writes a file there: through the link it would land elsewhere."""
    folder, _ = two_steps
    (tmp_path / "elsewhere").mkdir()
    shutil.rmtree(folder / "epochs")
    (folder / "epochs").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="is a link"):
        claim_epoch(folder, 0)
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("name", FILES)
def test_links_are_refused(two_steps: tuple[Path, Path], name: str) -> None:
    folder, pristine = two_steps
    (folder / "step-00000020" / name).unlink()
    (folder / "step-00000020" / name).symlink_to(pristine / name)
    wanted = deal(make_tensors(10), 2, 1, blank=True)
    assert all(loaded is not None and loaded.step == 10 for loaded, _ in load(folder, wanted))


def test_a_linked_step_is_not_a_step_of_the_run(two_steps: tuple[Path, Path]) -> None:
    folder, pristine = two_steps
    (folder / "step-00000030").symlink_to(pristine)
    assert inspect(folder / "step-00000030").state == "damaged"
