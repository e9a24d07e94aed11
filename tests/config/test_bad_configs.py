"""Every kind of bad config is refused with the key at fault, and all that is wrong is said at once."""

import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from llmscale.config.load import load_config
from llmscale.config.problems import InputError, Problem

GOOD = """
model: {preset: tiny, vocabulary_size: 8192}
data: {train: [corpus/text]}
train: {global_batch_size: 32, micro_batch_size: 4, sequence_length: 256}
parallel: {tensor: 2, pipeline: 2}
cluster: {processes_per_node: 4}
"""

# One kind of mistake a line: overrides of the good config -> key that must be named, part of the message.
BAD: list[tuple[str, str, str]] = [
    # Unknown keys, with the nearest valid one.
    ("trian.steps=3", "trian", "did you mean train?"),
    ("train.stpes=3", "train.stpes", "did you mean train.steps?"),
    ("train.learning_rate=3", "train.learning_rate", "unknown key"),
    ("train.lr=3e-4", "train.lr", "did you mean optimizer.lr?"),
    ("parallel.stage=1", "parallel.stage", "did you mean zero.stage?"),
    ("model.hidden=3", "model.hidden", "did you mean model.hidden_size?"),
    ("model.rope_scaling.facter=2", "model.rope_scaling.facter", "did you mean model.rope_scaling.factor?"),
    ("zero.offload.optimiser=cpu", "zero.offload.optimiser", "did you mean zero.offload.optimizer?"),
    ("data.train=[{path: a, wieght: 2}]", "data.train.0.wieght", "did you mean data.train.0.weight?"),
    ("model.preset=tinny", "model.preset", "did you mean tiny?"),
    ("model=llama3_8", "model.preset", "did you mean llama3_8b?"),
    ("steps=3", "steps", "did you mean train.steps?"),
    ("rlhf.pools={a: {roles: [actor], proceses: 3}}", "rlhf.pools.a.proceses", "rlhf.pools.a.processes?"),
    ("rlhf.pools={a: {roles: [actor], cpus: 3}}", "rlhf.pools.a.cpus", "are: roles, processes"),
    ("cluster.placement=spread", "cluster.placement", "did you mean rlhf.pools.NAME.placement?"),
    # Not an override, not a value.
    ("train.steps", "train.steps", "key=value"),
    ("=3", "=3", "key=value"),
    ("train.steps=[1", "train.steps", "not a YAML value"),
    # Types and ranges.
    ("train.steps=0", "train.steps", "greater than 0"),
    ("train.steps=-1", "train.steps", "greater than 0"),
    ("train.steps=many", "train.steps", "integer"),
    ("train.steps=1.5", "train.steps", "integer"),
    ("train.steps=null", "train.steps", "integer"),
    ("train.steps=[3]", "train.steps", "integer"),
    ("train.precision=fp16", "train.precision", "bf16"),
    ("train.recompute=all", "train.recompute", "selective"),
    ("train.micro_batch_size=0", "train.micro_batch_size", "greater than 0"),
    ("train.stop_at=0", "train.stop_at", "greater than 0"),
    ("train.batch_warmup={start: 8}", "train.batch_warmup.increment", "field required"),
    ("optimizer.lr=0", "optimizer.lr", "greater than 0"),
    ("optimizer.lr=.nan", "optimizer.lr", "finite"),
    ("optimizer.lr=.inf", "optimizer.lr", "finite"),
    ("optimizer.betas=[0.9]", "optimizer.betas.1", "field required"),
    ("optimizer.betas=[0.9, 1.0]", "optimizer.betas.1", "less than 1"),
    ("optimizer.clip=-1", "optimizer.clip", "greater than or equal to 0"),
    ("optimizer=sgd", "optimizer.name", "adamw"),
    ("optimizer.schedule=cosin", "optimizer.schedule", "cosine"),
    ("zero.stage=0", "zero.stage", "1, 2 or 3"),
    ("zero=4", "zero.stage", "1, 2 or 3"),
    ("model.family=lama", "model.family", "llama"),
    ("model.dropout=1", "model.dropout", "less than 1"),
    ("model.rope_base=-1", "model.rope_base", "greater than 0"),
    ("task=pretraining", "task", "pretrain"),
    ("run.name=a/b", "run.name", "pattern"),
    ("run.name=../up", "run.name", "pattern"),
    ("cluster=lsf", "cluster.profile", "local, slurm, ray"),
    ("checkpoint.resume=maybe", "checkpoint.resume", "auto"),
    ("data.train=corpus", "data.train", "list"),
    ("data.train=[{weight: 1}]", "data.train.0.path", "field required"),
    ("data.train=[{path: a, weight: 0}]", "data.train.0.weight", "greater than 0"),
    ("data.split=[1, 1]", "data.split.2", "field required"),
    ("model=[1]", "model.preset", "string"),
    # What takes several keys.
    ("model.heads=7", "model.heads", "does not divide model.hidden_size"),
    ("model.kv_heads=3", "model.kv_heads", "does not divide model.heads"),
    ("model.head_size=33", "model.head_size", "must be even"),
    ("model.family=gpt2", "model.kv_heads", "no grouped-query attention"),
    ("model.sliding_window=16", "model.sliding_window", "model.family=mistral"),
    ("model.family=gpt2 model.rope_scaling={factor: 8}", "model.rope_scaling", "learned positions"),
    ("model.max_positions=128", "train.sequence_length", "model.max_positions = 128"),
    ("parallel.tensor=3 cluster.processes_per_node=6", "parallel.tensor", "model.heads"),
    ("model.ffn_size=705", "parallel.tensor", "model.ffn_size"),
    ("parallel.tensor=1 parallel.sequence=true", "parallel.sequence", "parallel.tensor above 1"),
    ("parallel.sequence=true train.sequence_length=255", "parallel.sequence", "must divide"),
    ("parallel.pipeline=8 cluster.processes_per_node=16", "parallel.pipeline", "fewer than"),
    ("model.layers=5", "parallel.pipeline", "must divide"),
    ("parallel.interleave=4", "parallel.pipeline", "fewer than 8 chunks"),
    ("parallel.pipeline=1 parallel.interleave=2", "parallel.interleave", "parallel.pipeline above 1"),
    ("parallel.interleave=2 train.global_batch_size=12", "parallel.interleave", "microbatches a step = 3"),
    ("zero.stage=2", "zero.stage", "parallel.pipeline=1"),
    ("zero.stage=3", "zero.stage", "parallel.pipeline=1"),
    ("zero.offload.parameters=cpu", "zero.offload.parameters", "zero.stage=3"),
    ("zero.offload.optimizer=nvme", "zero.offload.nvme_path", "set it"),
    ("train.precision=fp64 zero.stage=3 parallel.pipeline=1", "train.precision", "zero.stage=1"),
    ("optimizer=adam", "optimizer.name", "adamw"),
    ("parallel.context=2 cluster.processes_per_node=8", "parallel.context", "not built yet"),
    ("parallel.expert=2", "parallel.expert", "not built yet"),
    ("cluster.processes_per_node=6", "cluster.processes_per_node", "multiple of"),
    ("cluster.processes_per_node=2", "cluster.processes_per_node", "multiple of"),
    ("train.global_batch_size=30", "train.global_batch_size", "multiple of"),
    (
        "train.batch_warmup={start: 6, increment: 4, samples: 9}",
        "train.batch_warmup.start",
        "multiple of 4",
    ),
    (
        "train.batch_warmup={start: 8, increment: 6, samples: 9}",
        "train.batch_warmup.increment",
        "multiple of 4",
    ),
    (
        "train.batch_warmup={start: 8, increment: 16, samples: 9}",
        "train.batch_warmup.increment",
        "whole steps",
    ),
    (
        "train.batch_warmup={start: 64, increment: 32, samples: 9}",
        "train.batch_warmup.increment",
        "whole steps",
    ),
    ("optimizer.schedule=wsd optimizer.decay_steps=500", "optimizer.decay_steps", "train.steps = 100"),
    ("optimizer.min_lr=1", "optimizer.min_lr", "above optimizer.lr"),
    ("data.split=[0, 1, 0]", "data.split", "nothing to train on"),
    ("data.train=[]", "data.train", "llmscale data tokenize"),
    ("model.vocabulary_size=null", "tokenizer.path", "names no tokenizer"),
    ("train.stop_at=101", "train.stop_at", "train.steps = 100"),
    ("train.profile=0", "train.profile", "write the first and the last one (10:13)"),
    ("train.profile=-3", "train.profile", "from 1 on"),
    ("train.profile=0:3", "train.profile", "from 1 on"),
    ("train.profile=some", "train.profile", "is no steps"),
    ("train.profile=[2, 3]", "train.profile", "is no steps"),
    ("train.profile=1.5", "train.profile", "is no steps"),
    ("train.profile=13:10", "train.profile", "write 10:13"),
    ("train.profile=99:101", "train.profile", "beyond the run's last step, 100"),
    ("train.profile=51 train.stop_at=50", "train.profile", "beyond the run's last step, 50"),
    ("task=rlhf train.profile=3", "train.profile", "is not read by task=rlhf"),
    # Preference training.
    ("dpo=dpo", "dpo.loss", "sigmoid"),
    ("dpo.label_smoothing=0.5", "dpo.label_smoothing", "less than 0.5"),
    ("dpo.loss=ipo dpo.label_smoothing=0.1", "dpo.label_smoothing", "but by sigmoid, robust"),
    ("dpo.target_margin=1", "dpo.target_margin", "not read by dpo.loss = sigmoid, but by simpo"),
    ("dpo.loss=simpo dpo.reference=held", "dpo.reference", "not read by dpo.loss = simpo"),
    ("dpo.loss=orpo dpo.sft_weight=1", "dpo.sft_weight", "not read by dpo.loss = orpo"),
    ("dpo.loss=kto dpo.length_normalised=true", "dpo.length_normalised", "not read by dpo.loss = kto"),
    ("reward=outcome reward.margin=true", "reward.margin", "but by bradley_terry"),
    ("task=dpo", "train.init_from", "writes already"),
    ("task=dpo train.init_from=a dpo.reference=adapter", "dpo.reference", "lora, dora, adapter"),
    (
        "task=dpo train.init_from=a dpo.reference=held peft.method=prompt_tuning",
        "dpo.reference",
        "take precomputed",
    ),
    ("task=dpo train.init_from=a data.replay={corpus: b}", "data.replay", "only task=sft"),
    ("task=reward data.forgetting=[b]", "data.forgetting", "needs a model that writes"),
    ("task=reward train.generate={prompts: [a]}", "train.generate", "needs a model that writes"),
]  # fmt: skip


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.yaml"
    path.write_text(GOOD)
    return path


def problems_of(path: Path, overrides: Sequence[str] = ()) -> list[Problem]:
    with pytest.raises(InputError) as caught:
        load_config(path, overrides)
    return caught.value.problems


def split(line: str) -> list[str]:
    """`a=1 b={c: 2}` at the blanks before a new key."""
    parts: list[str] = []
    for word in line.split(" "):
        if parts and ("=" not in word or not word[0].isalpha()):
            parts[-1] += f" {word}"
        else:
            parts.append(word)
    return parts


def test_good_config_is_good(good: Path) -> None:
    assert load_config(good).data_parallel == 1


@pytest.mark.parametrize(("overrides", "key", "message"), BAD, ids=[line[0] for line in BAD])
def test_refused(good: Path, overrides: str, key: str, message: str) -> None:
    problems = problems_of(good, split(overrides))
    said = [problem.message for problem in problems if problem.key == key]
    assert said, f"{key} is not named in {[str(problem) for problem in problems]}"
    assert any(message in text for text in said), said


def test_nothing_is_said_twice(good: Path) -> None:
    for overrides, _, _ in BAD:
        problems = problems_of(good, split(overrides))
        assert len({(p.key, p.message) for p in problems}) == len(problems), overrides


def test_all_at_once_and_fast(good: Path) -> None:
    """Unknown keys, wrong types and impossible combinations in one answer."""
    overrides = [
        "train.stpes=3",
        "optimizer.lr=-1",
        "zero.stage=2",
        "model.heads=7",
        "train.global_batch_size=30",
    ]
    overrides += ["train.recompute=sometimes", "nonsense", "data.train=[]"]
    start = time.perf_counter()
    keys = {problem.key for problem in problems_of(good, overrides)}
    assert time.perf_counter() - start < 1
    assert keys >= {
        "train.stpes",
        "optimizer.lr",
        "zero.stage",
        "model.heads",
        "train.global_batch_size",
        "train.recompute",
        "nonsense",
        "data.train",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: [", "is not YAML"),
        ("- a\n- b\n", "must be a mapping"),
        ("just text", "must be a mapping"),
        ("\x00", "is not YAML"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    (problem,) = problems_of(path)
    assert problem.key == "CONFIG"
    assert message in problem.message


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(b"\xff\xfe\xfa")
    assert "cannot be read" in problems_of(path)[0].message


def test_missing_file_and_folder(tmp_path: Path) -> None:
    assert "no such file" in problems_of(tmp_path / "none.yaml")[0].message
    assert "cannot be read" in problems_of(tmp_path)[0].message


def test_empty_file_names_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("")
    assert {problem.key for problem in problems_of(path)} == {"data.train", "tokenizer.path"}
