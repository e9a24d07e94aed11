"""Runs that train few weights on top of a base: what they save, go on from, export, and refuse."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmscale.checkpoint.base import identity_of
from llmscale.checkpoint.errors import CheckpointError
from llmscale.config.problems import InputError
from tests.distributed.trainings import Place, Run, assert_same_run, assert_same_tensors
from tests.ranks import run_ranks
from tests.run.peft_runs import (
    LAYOUTS,
    PP2,
    TP2,
    ZERO3,
    Peer,
    export,
    newest_base,
    of_method,
    of_model,
    of_texts,
    said_rank,
    tokens_BS,
)

STEPS = ("train.steps=6", "checkpoint.every=2", "checkpoint.keep_last=9")
UPDATED = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place.make(tmp_path_factory.mktemp("peft"))


@pytest.fixture(scope="module")
def base(place: Place) -> Path:
    return newest_base(place, "base", "llama", "checkpoint.keep_last=9")


@pytest.fixture(scope="module")
def lora(place: Place, base: Path) -> Run:
    """The oracle: one rank, undisturbed."""
    return place.uninterrupted("lora", *of_model("llama"), *of_method("lora", base), *STEPS)


def description(run: Run) -> dict[str, object]:
    newest = run.folder / "checkpoints" / f"step-{run.committed_steps()[-1]:08d}"
    return json.loads((newest / "manifest.json").read_text())["description"]


def test_a_checkpoint_has_what_is_trained_and_nothing_else(lora: Run, base: Path) -> None:
    names = {
        f"base_model.model.model.layers.{layer}.{module}.lora_{letter}.weight"
        for layer in range(2)
        for module in UPDATED
        for letter in "AB"
    }
    moments = {f"optimizer.{key}.{name}" for name in names for key in ("exp_avg", "exp_avg_sq")}
    assert lora.tensors().keys() == names | moments
    of_base = base / "checkpoints" / "step-00000002"
    (told,) = lora.events("tuned")
    trained = sum(tensor.numel() for name, tensor in lora.tensors().items() if name in names)
    assert (told.details["peft"], told.details["trained_parameters"]) == ("lora", trained)
    assert description(lora)["base"] == {"path": str(of_base), "identity": identity_of(of_base)}
    assert description(lora)["peft"] == {
        "method": "lora",
        "rank": 4,
        "alpha": 32.0,
        "rslora": False,
        "dropout": 0.0,
        "target_modules": ["q_proj", "v_proj", "down_proj"],
    }
    sizes = [sum(file.stat().st_size for file in (run / "checkpoints").glob("step-*/shard*")) for run in
             (lora.folder, base)]  # fmt: skip
    assert sizes[0] / 3 < 0.1 * sizes[1]


def test_going_on_is_exact_also_when_the_base_run_has_gone_on(place: Place, base: Path, lora: Run) -> None:
    other = shutil.copytree(base, base.with_name("base-2"))
    options = (*of_model("llama"), *of_method("lora", other), *STEPS)
    place.uninterrupted("cut", *options, "train.stop_at=3")
    assert place.train("base-2", *of_model("llama"), "train.steps=3", "checkpoint.keep_last=9") == 0
    assert place.run("base-2").committed_steps()[-1] == 3
    assert_same_run(place.uninterrupted("cut", *options), lora)
    shutil.rmtree(other / "checkpoints" / "step-00000002")
    with pytest.raises(InputError, match="train.init_from.*has not the weights that this run was begun from"):
        place.train("cut", *options, "train.steps=7")


def test_each_part_under_another_layout(place: Place, base: Path, lora: Run) -> None:
    options = (*of_model("llama"), *of_method("lora", base), *STEPS)
    for stop, layout in ((2, TP2), (4, PP2), (6, ZERO3)):
        run = place.uninterrupted("moved", *options, *layout, f"train.stop_at={stop}")
    for line, expected in zip(run.stream(), lora.stream(), strict=True):
        assert line == pytest.approx(expected, rel=1e-5)
    assert run.tensors().keys() == lora.tensors().keys()


def test_another_method_or_other_options_are_refused_before_any_rank_starts(
    place: Place, base: Path, lora: Run
) -> None:
    options = (*of_model("llama"), *of_method("lora", base), *STEPS, "train.steps=7")
    with pytest.raises(InputError, match=r"peft.rank = 8: is 4 in the run's checkpoint"):
        place.train("lora", *options, "peft.rank=8")
    with pytest.raises(InputError, match=r"peft.method = none: is lora"):
        place.train("lora", *of_model("llama"), *STEPS, "train.steps=7")
    with pytest.raises(InputError, match=r"peft.method = lora: is none"):
        place.train("base", *of_model("llama"), *of_method("lora", base), "train.steps=7")


def test_a_folder_with_other_weights_of_the_same_shape_is_refused(place: Place, base: Path) -> None:
    folder = export(base, place.folder / "folder")
    options = (*of_model("llama"), *of_method("lora", folder), *STEPS)
    place.uninterrupted("on-folder", *options, "train.stop_at=2")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][7] += 1e-3
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert place.train("on-folder", *options) != 0
    assert "has not the weights that this run was begun from" in place.run("on-folder").rank_logs()
    assert place.run("on-folder").committed_steps() == [2]


def test_a_base_that_has_moved_is_used_where_it_is_named(place: Place, base: Path, lora: Run) -> None:
    """To train on, to export, to merge and to write; other weights are refused by name."""
    first = shutil.copytree(base, base.with_name("first"))
    options = (*of_model("llama"), *of_method("lora", first), *STEPS)
    run = place.uninterrupted("on-moved", *options, "train.stop_at=4").folder
    expected = load_file(export(run, place.folder / "before", merge=True) / "model.safetensors")
    told = next(rank[run] for rank in run_ranks(2, said_rank, [run], "tensor 2") if run in rank)
    moved = first.rename(place.folder / "elsewhere")
    assert place.train("base-5", *of_model("llama"), "train.steps=1", "train.seed=5") == 0
    strange = place.run("base-5").folder
    for out in ("adapter", "merged"):
        with pytest.raises(CheckpointError, match="first.* has gone: .* name the folder .* --base"):
            export(run, place.folder / out, out == "merged")
        with pytest.raises(InputError, match="--base.*has other weights than .*first"):
            export(run, place.folder / out, out == "merged", strange)
        with pytest.raises(InputError, match="--base.*no checkpoint there"):
            export(run, place.folder / out, out == "merged", place.folder)
    assert_same_tensors(
        load_file(export(run, place.folder / "merged", True, moved) / "model.safetensors"), expected
    )
    adapter = json.loads(
        (export(run, place.folder / "adapter", base=moved) / "adapter_config.json").read_text()
    )
    assert adapter["base_model_name_or_path"] == str(moved / "checkpoints" / "step-00000002")
    with pytest.raises(InputError, match="--base.*is not needed"):
        export(base, place.folder / "whole", base=moved)
    with pytest.raises(InputError, match="train.init_from.*has not the weights that this run was begun from"):
        place.train("on-moved", *options, f"train.init_from={strange}")
    said = next(rank[run] for rank in run_ranks(2, said_rank, [run], "tensor 2", moved) if run in rank)
    assert torch.equal(said.logits, told.logits) and said.texts == told.texts
    assert_same_run(place.uninterrupted("on-moved", *options, f"train.init_from={moved}"), lora)


def test_beginning_from_a_lora_run_is_beginning_from_its_merged_export(place: Place, lora: Run) -> None:
    folder = export(lora.folder, place.folder / "begun-from", merge=True)
    options = (*of_model("llama"), "train.steps=2")
    from_run = place.uninterrupted("from-run", *options, f"train.init_from={lora.folder}", *TP2)
    from_folder = place.uninterrupted("from-folder", *options, f"train.init_from={folder}", *TP2)
    assert from_run.stream() == from_folder.stream()
    assert_same_tensors(from_run.tensors(), from_folder.tensors())


def test_a_damaged_base_is_not_merged(place: Place, base: Path) -> None:
    damaged = shutil.copytree(base, base.with_name("damaged"))
    run = place.uninterrupted("on-damaged", *of_model("llama"), *of_method("lora", damaged), "train.steps=1")
    shard = next((damaged / "checkpoints" / "step-00000002").glob("shard-*"))
    data = bytearray(shard.read_bytes())
    data[-5] ^= 1
    shard.write_bytes(data)
    with pytest.raises(CheckpointError, match="are not those that were saved"):
        export(run.folder, place.folder / "no-merge", merge=True)
    assert not (place.folder / "no-merge").exists()
    export(run.folder, place.folder / "adapter-alone")


def test_what_cannot_be_merged_or_exported_is_refused_with_the_reason(place: Place, base: Path) -> None:
    run = place.uninterrupted("adapters", *of_model("llama"), *of_method("adapter", base), "train.steps=1")
    with pytest.raises(InputError, match="the peft library has not; its weights lie"):
        export(run.folder, place.folder / "no-adapter")
    with pytest.raises(InputError, match="layers of its own between"):
        export(run.folder, place.folder / "no-adapter", merge=True)
    with pytest.raises(InputError, match="train.init_from.*peft.method = adapter.*layers of its own"):
        place.train("after-adapters", *of_model("llama"), f"train.init_from={run.folder}")
    assert not (place.folder / "no-adapter").exists()


@pytest.mark.parametrize("family", ["llama", pytest.param("gpt2", marks=pytest.mark.soak)])
def test_exported_adapters_and_merged_models_say_what_ours_say(place: Place, family: str) -> None:
    """Trained under two tensor ranks; asked under two tensor ranks, two stages, and in the peft library."""
    base = newest_base(place, f"base-{family}", family)
    folder = export(base, place.folder / f"base-of-{family}")
    methods = ["lora", "dora", "prefix_tuning", "prompt_tuning"]
    methods += ["freeze", "p_tuning"] if family == "llama" else []
    runs: dict[str, Path] = {}
    for method in methods:
        texts = of_texts(place) if method in ("prompt_tuning", "p_tuning") else ()
        options = (*of_model(family), *of_method(method, base, family), *texts, *TP2, "train.steps=2")
        runs[method] = place.uninterrupted(f"{method}-{family}", *options).folder
    said = [run_ranks(2, said_rank, list(runs.values()), layout) for layout in LAYOUTS]
    plain = Peer(folder).logits(tokens_BS())
    for method, run in runs.items():
        ours = [next(rank[run] for rank in of_layout if run in rank) for of_layout in said]
        assert (plain - ours[0].logits).abs().max() > 1e-2, "else nothing was learned"
        peers = []
        if method != "freeze":
            peers.append(Peer(folder, export(run, place.folder / f"{method}-of-{family}")))
        if method in ("lora", "dora", "freeze"):
            peers.append(Peer(export(run, place.folder / f"{method}-merged-{family}", merge=True)))
        for peer in peers:
            for one in ours:
                assert (peer.logits(tokens_BS()) - one.logits).abs().max() <= 1e-5, method
                assert peer.likeliest(one.texts) == one.texts, method
    assert torch.equal(plain, Peer(folder).logits(tokens_BS()))
