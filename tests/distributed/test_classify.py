"""A head under every layout: the loss stream, the gradients and the weights of the single rank."""

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from llmscale.checkpoint.store import inspect
from llmscale.config.load import load_config, read_resolved
from llmscale.config.problems import InputError
from llmscale.config.schema import Config, ParallelSection
from llmscale.data.checks import resolved_vocabulary_size
from llmscale.data.labelled import with_labels
from llmscale.data.tokenizer import open_encoder
from llmscale.data.train_tokenizer import train_tokenizer
from llmscale.model.huggingface import hugging_face_config
from llmscale.parallel.environment import RankEnvironment
from llmscale.run.beginnings import check_init_from
from llmscale.run.deep_verify import plan_check
from llmscale.run.export import plan_export
from llmscale.run.huggingface import copy_tokenizer
from llmscale.run.loaded_model import load_model
from llmscale.run.target import find_target
from tests.distributed.parity import TOLERANCES, Run, compare, parity_config, train, train_all
from tests.distributed.test_peft_layouts import PATCHES
from tests.distributed.trainings import SECTIONS, Place, assert_same_run
from tests.distributed.trainings import Run as WholeRun
from tests.ranks import run_ranks

STEPS = 6
FAMILIES = ("llama", "gpt2")
LABELS = {"labels": ["a", "b", "c"]}
LAYOUTS: dict[str, dict[str, Any]] = {
    "tensor 2": {"tensor": 2},
    "sequence parallel": {"tensor": 2, "sequence": True},
    "pipeline 2": {"pipeline": 2},
    "zero 2": {"data": 2, "zero": 2},
    "zero 3": {"data": 2, "zero": 3},
}
QUICK = ("sequence parallel", "pipeline 2", "zero 3")
QUICK_WITH_PEFT = ("zero 3",)
"""What `make test` runs; the rest is `make soak`."""


def soak(value: str) -> Any:
    return pytest.param(value, marks=pytest.mark.soak)


def classifier(family: str = "llama", problem: str = "single_label", **options: Any) -> Config:
    tree = parity_config(family, **options).model_dump(exclude_unset=True)
    section = {"problem": problem} | (LABELS if problem == "single_label" else {})
    return Config.model_validate(tree | {"task": "classify", "classify": section})


@pytest.fixture(scope="module")
def alone() -> Run:
    return train(classifier(), steps=STEPS)


@pytest.mark.parametrize("layout", [layout if layout in QUICK else soak(layout) for layout in LAYOUTS])
def test_every_layout_gives_what_one_rank_gives(layout: str, alone: Run) -> None:
    run = train(classifier(**LAYOUTS[layout]), steps=STEPS)
    compare(run, alone, TOLERANCES["fp32"])
    assert run.weights["score.weight"].shape == (3, 64)
    assert "lm_head.weight" not in run.weights


METHODS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora", "rank": 4, "alpha": 8},
    "prefix tuning": {"method": "prefix_tuning", "virtual_tokens": 5},
}


@cache
def alone_with_peft() -> list[Run]:
    return train_all([classifier(peft=options) for options in METHODS.values()], steps=STEPS)


@pytest.mark.parametrize(
    "layout", [layout if layout in QUICK_WITH_PEFT else soak(layout) for layout in LAYOUTS]
)
def test_every_layout_trains_a_head_beside_few_weights_as_one_rank_does(layout: str) -> None:
    """The gates of a run are asked after each step: what is frozen stays."""
    configs = [classifier(peft=options, **LAYOUTS[layout]) for options in METHODS.values()]
    for method, run, expected in zip(METHODS, train_all(configs, PATCHES, STEPS), alone_with_peft()):
        try:
            compare(run, expected, TOLERANCES["fp32"])
        except AssertionError as error:
            raise AssertionError(f"{method}: {error}") from None
        assert run.gradients["score.weight"].shape == (3, 64)
        assert not any(name.startswith("model.") for name in run.gradients)


def test_regression_of_a_tied_model_with_biases_under_tensor_and_pipeline_parallelism() -> None:
    """gpt2's output is its embedding: without it the last stage has no copy."""
    expected = train(classifier("gpt2", "regression", tied=True), steps=STEPS)
    parallel = classifier("gpt2", "regression", tied=True, tensor=2, sequence=True, pipeline=2)
    compare(train(parallel, steps=STEPS), expected, TOLERANCES["fp32"])


WORDS = {
    "fruit": ("apple", "cherry", "plum"),
    "tool": ("hammer", "saw", "drill"),
    "bird": ("owl", "crow", "gull"),
}


def write_texts(path: Path, count: int, seed: int) -> None:
    """Sentences that a word gives away, of different lengths."""
    source = random.Random(seed)
    with path.open("w") as file:
        for _ in range(count):
            label = source.choice(list(WORDS))
            filler = [source.choice(("very", "old", "and", "red")) for _ in range(source.randrange(12))]
            words = [*filler, source.choice(WORDS[label])]
            source.shuffle(words)
            file.write(json.dumps({"text": " ".join(words), "label": label}) + "\n")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("classify")
    texts = [" ".join((*words, "very old and red")) for words in WORDS.values()] * 40
    train_tokenizer(texts, folder / "tokenizer", 380, "bpe", threads=1)
    write_texts(folder / "train.jsonl", 256, 1)
    write_texts(folder / "validation.jsonl", 37, 2)
    config = {
        "task": "classify",
        "run": {"root": str(folder / "runs")},
        "model": SECTIONS["model"] | {"hidden_size": 32, "vocabulary_size": None},
        "tokenizer": {"path": str(folder / "tokenizer")},
        "data": {
            "train": [{"path": str(folder / "train.jsonl")}],
            "validation": [{"path": str(folder / "validation.jsonl")}],
        },
        "train": SECTIONS["train"] | {"steps": 40, "sequence_length": 32, "validate_every": 20},
        "optimizer": {"lr": 1e-2, "warmup_steps": 3},
        "checkpoint": {"every": 20},
        "cluster": SECTIONS["cluster"],
        "logging": SECTIONS["logging"],
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    return Place(folder)


@pytest.fixture(scope="module")
def trained(place: Place) -> WholeRun:
    return place.uninterrupted("full")


def test_a_run_learns_and_transformers_tells_the_same_of_its_export(place: Place, trained: WholeRun) -> None:
    found = trained.events("validated")[-1].details
    assert found["metrics"]["accuracy"] > 0.9
    out = place.folder / "exported"
    export = plan_export(str(trained.folder), place.folder / "runs", None, "fp32")
    export.write(out, 1 << 30, lambda _: None)
    model = AutoModelForSequenceClassification.from_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert model.config.id2label == dict(enumerate(sorted(WORDS)))
    records = [json.loads(line) for line in (place.folder / "validation.jsonl").open()]
    batch = tokenizer([record["text"] for record in records], padding=True, return_tensors="pt")
    labels = torch.tensor([model.config.label2id[record["label"]] for record in records])
    with torch.no_grad():
        told = model(**batch, labels=labels)
    assert told.loss.item() == pytest.approx(found["loss"], abs=1e-5)
    counts = torch.zeros(3, 3, dtype=torch.int64)
    counts.index_put_((labels, told.logits.argmax(-1)), torch.ones(len(labels), dtype=torch.int64), True)
    assert counts.tolist() == found["metrics"]["confusion"]


def test_its_weights_compute_as_saved_and_others_do_not(trained: WholeRun) -> None:
    assert deep_faults(trained) == []
    found = inspect(trained.folder / "checkpoints" / "step-00000040")
    assert found.manifest is not None
    earlier = inspect(trained.folder / "checkpoints" / "step-00000020")
    check = plan_check(earlier.path, found.manifest, [], own_layout=False)
    assert not isinstance(check, str), check
    assert any("its weights give another loss" in fault for fault in check.faults())


def test_a_stopped_run_goes_on_with_its_labels_and_no_others(place: Place, trained: WholeRun) -> None:
    assert place.train("stopped", "train.stop_at=20") == 0
    assert place.train("stopped", "train.stop_at=20", "classify.labels=[tool, bird, fruit]") == 2
    assert place.train("stopped") == 0
    assert_same_run(place.run("stopped"), trained)


EXPORTED = ("lora", "dora", "prefix_tuning", "prompt_tuning", "p_tuning")
ALONE = ("prompt_tuning", "p_tuning")
"""With these the peft library asks transformers for the last place of a row, padding or not."""


@pytest.fixture(scope="module", params=[FAMILIES[0], *(soak(family) for family in FAMILIES[1:])])
def base(place: Place, request: pytest.FixtureRequest) -> Path:
    """A model that writes, as transformers saves it."""
    folder = place.folder / request.param
    config = load_config(place.config, [f"model.family={request.param}"])
    rows = resolved_vocabulary_size(config)
    tree = hugging_face_config(config.model, rows, config.train.sequence_length)
    torch.manual_seed(5)
    described = AutoConfig.for_model(**tree)
    AutoModelForCausalLM.from_config(described).save_pretrained(folder)
    copy_tokenizer(place.folder / "tokenizer", folder)
    return folder


@pytest.mark.parametrize("method", [EXPORTED[0], *(soak(method) for method in EXPORTED[1:])])
def test_few_weights_and_a_head_of_a_run_are_what_the_libraries_load(
    place: Place, base: Path, method: str
) -> None:
    """Trained under two tensor ranks; the adapter on its base, and merged, give our scores."""
    layout = ("parallel.tensor=2", "cluster.processes_per_node=2")
    name = f"{method}-{base.name}"
    own = [f"train.init_from={base}", f"peft={method}", f"model.family={base.name}", "train.stop_at=30"]
    virtual = ["peft.virtual_tokens=5", "model.max_positions=32", "train.sequence_length=27"]
    own += virtual if "tuning" in method else ["peft.rank=4"]
    run = place.uninterrupted(name, *own, *layout)
    names = {name for name in run.tensors() if not name.startswith("optimizer.")}
    assert "score.weight" in names
    assert not names & load_file(base / "model.safetensors").keys()
    texts = [json.loads(line)["text"] for line in (place.folder / "validation.jsonl").open()]
    ours_DL = run_ranks(1, scores_of_rank, run.folder, texts)[0]
    assert ours_DL.std() > 1e-2
    out = write_export(run, place.folder / f"exported-{name}")
    head = json.loads((out / "head.json").read_text())
    assert head["label2id"] == {label: number for number, label in enumerate(sorted(WORDS))}
    on_base = AutoModelForSequenceClassification.from_pretrained(base, **head)
    model = PeftModel.from_pretrained(on_base, out)
    told_DL = scores_of_peer(model, out, texts, padded=method not in ALONE)
    torch.testing.assert_close(told_DL, ours_DL, atol=1e-5, rtol=0)
    if method in ("lora", "dora"):
        merged = write_export(run, place.folder / f"merged-{name}", merge=True)
        model = AutoModelForSequenceClassification.from_pretrained(merged)
        assert model.config.id2label == dict(enumerate(sorted(WORDS)))
        told_DL = scores_of_peer(model, merged, texts)
        torch.testing.assert_close(told_DL, ours_DL, atol=1e-5, rtol=0)
    # Two stages cost seconds to start.
    assert deep_faults(run, *(() if method == EXPORTED[0] else ("parallel.pipeline=2",))) == []


def write_export(run: WholeRun, out: Path, merge: bool = False) -> Path:
    export = plan_export(str(run.folder), run.folder.parent, None, "fp32", merge)
    export.write(out, 1 << 30, lambda _: None)
    return out


def deep_faults(run: WholeRun, *layout: str) -> list[str]:
    """What `checkpoint verify --deep` finds in the newest."""
    found = inspect(run.folder / "checkpoints" / f"step-{run.committed_steps()[-1]:08d}")
    assert found.manifest is not None
    check = plan_check(found.path, found.manifest, layout, own_layout=False)
    assert not isinstance(check, str), check
    return check.faults()


def scores_of_rank(_: int, run: Path, texts: list[str]) -> Tensor:
    """Of each text by itself, at its last token, by our model with what was trained beside its base."""
    config = with_labels(read_resolved(run / "config.yaml"))
    config = config.model_copy(update={"parallel": ParallelSection()})
    virtual = [-1 - place for place in range(config.peft.placeholders)]
    assert config.tokenizer.path is not None
    encoder = open_encoder(config.tokenizer.path)
    chunks, world = load_model(config, resolved_vocabulary_size(config), RankEnvironment(), run)
    found: list[Tensor] = []
    with world.active(), torch.no_grad():
        for text in texts:
            tokens = torch.tensor([virtual + encoder.encode(text).ids])
            found.append(chunks[0].eval()(tokens, torch.arange(tokens.shape[1])[None])[-1, 0])
    return torch.stack(found)


@torch.no_grad()
def scores_of_peer(model: Any, folder: Path, texts: list[str], padded: bool = True) -> Tensor:
    """As a user would ask: a padded batch, or text by text."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batches = [texts] if padded else [[text] for text in texts]
    return torch.cat(
        [model.eval()(**tokenizer(batch, padding=True, return_tensors="pt")).logits for batch in batches]
    )


def test_a_classifier_does_not_write(trained: WholeRun) -> None:
    with pytest.raises(InputError, match="cannot write"):
        find_target(str(trained.folder), trained.folder.parent)


def test_what_writes_does_not_begin_from_a_classifier(place: Place, trained: WholeRun) -> None:
    """Another classifier does, or a reward model: their heads are new."""
    begun = load_config(place.config, [f"train.init_from={trained.folder}"])
    for task in ("classify", "reward"):
        assert check_init_from(begun.model_copy(update={"task": task})) == []
    for task in ("pretrain", "sft", "dpo"):
        (problem,) = check_init_from(begun.model_copy(update={"task": task}))
        assert problem.key == "train.init_from"
        assert f"task={task} needs a model that writes" in problem.message
