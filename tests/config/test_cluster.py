"""The cluster section: profiles, shorthands, and rules over its keys."""

from pathlib import Path

import pytest

from llmscale.config.cluster_checks import time_limit_seconds
from llmscale.config.load import load_config, load_variants, read_resolved, write_resolved
from llmscale.config.presets import profile_files
from llmscale.config.problems import InputError, Problem

TEXT = """
model: {preset: tiny, vocabulary_size: 8192}
data: {train: [corpus/text]}
train: {global_batch_size: 64}
"""
PROFILE = """
kind: slurm
partition: batch
processes_per_node: 2
environment: {A: site, B: site}
watchdog: {name_after: 7, restart_after: 90}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(TEXT)
    (tmp_path / "site.yaml").write_text(PROFILE)
    return path


def problems_of(path: Path, *overrides: str) -> list[Problem]:
    with pytest.raises(InputError) as caught:
        load_config(path, overrides)
    return caught.value.problems


def test_a_profile_stands_where_nothing_else_is_said(path: Path, tmp_path: Path) -> None:
    profile = f"cluster={tmp_path / 'site.yaml'}"
    changes = ["cluster.partition=mine", "cluster.environment.B=mine", "cluster.watchdog.name_after=3"]
    cluster = load_config(path, [profile, *changes]).cluster
    assert (cluster.kind, cluster.partition, cluster.processes_per_node) == ("slurm", "mine", 2)
    assert cluster.environment == {"A": "site", "B": "mine"}
    assert (cluster.watchdog.name_after, cluster.watchdog.restart_after) == (3, 90)


def test_a_resolved_config_does_not_need_its_profile(path: Path, tmp_path: Path) -> None:
    config = load_config(path, [f"cluster.profile={tmp_path / 'site.yaml'}"])
    write_resolved(config, tmp_path / "config.yaml")
    (tmp_path / "site.yaml").unlink()
    assert read_resolved(tmp_path / "config.yaml") == config


@pytest.mark.parametrize("name", profile_files())
def test_shipped_profiles_load_by_name(path: Path, name: str) -> None:
    cluster = load_config(path, [f"cluster={name}"]).cluster
    assert cluster.profile == name
    assert cluster.kind in ("slurm", "ray")


def test_a_kind_beside_a_profile(path: Path, tmp_path: Path) -> None:
    """Later words win: a cluster's config tried at home."""
    assert load_config(path, [f"cluster={tmp_path / 'site.yaml'}", "cluster=local"]).cluster.kind == "local"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: slrm", "'local', 'slurm' or 'ray'"),
        ("partitoin: x", "did you mean cluster.partition?"),
        ("[1]", "must be a mapping"),
        ("kind: [", "cannot be read"),
        ("profile: other", "stands for itself"),
    ],
)
def test_bad_profiles(path: Path, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    assert any(message in problem.message for problem in problems_of(path, f"cluster={tmp_path}/bad.yaml"))


def test_an_unknown_profile_names_the_nearest(path: Path) -> None:
    (problem,) = problems_of(path, "cluster=slurm-gpus")
    assert problem.key == "cluster.profile"
    assert "did you mean slurm-gpu?" in problem.message
    assert "cannot be read" in problems_of(path, "cluster=./gone.yaml")[0].message


SLURM, EXCLUDE = "cluster.kind=slurm", "cluster.exclude_bad_nodes=true"
BAD: list[tuple[list[str], str, str]] = [
    (["cluster.nodes=4", "cluster.elastic=5"], "cluster.elastic.min_nodes", "more than cluster.nodes = 4"),
    (
        ["cluster.nodes=8", "cluster.processes_per_node=8", "cluster.elastic=5"],
        "cluster.elastic.min_nodes",
        "none of 5 to 7 nodes; 1, 2, 4 would do",
    ),
    (
        ["cluster.nodes=2", "parallel.tensor=2", "cluster.elastic=1"],
        "cluster.elastic.min_nodes",
        "no smaller number would do either",
    ),
    (["cluster.partition=gpu"], "cluster.kind", "set cluster.kind=slurm"),
    (["cluster.time=60"], "cluster.kind", "cluster.time is for SLURM"),
    (
        [SLURM, "cluster.gpus_per_node=2", "cluster.processes_per_node=4"],
        "cluster.processes_per_node",
        "a GPU of its own",
    ),
    ([SLURM, "cluster.backend=nccl"], "cluster.gpus_per_node", "asks for no GPU"),
    ([SLURM, "cluster.time=2"], "cluster.signal_seconds", "leaves no time"),
    ([SLURM, EXCLUDE, "cluster.preflight=false"], "cluster.exclude_bad_nodes", "preflight"),
    ([SLURM, EXCLUDE, "cluster.requeue=false"], "cluster.exclude_bad_nodes", "requeue"),
    ([SLURM, "cluster.exclude=['node 1']"], "cluster.exclude.0", "no blanks"),
    ([SLURM, "cluster.options=[reservation]"], "cluster.options.0", "one option of sbatch"),
    ([SLURM, "cluster.options=[--nodes=3]"], "cluster.options.0", "cluster.nodes; set that"),
    ([SLURM, "cluster.options=['-p gpu']"], "cluster.options.0", "cluster.partition; set that"),
    ([SLURM, "cluster.options=[--output=x]"], "cluster.options.0", "the run folder"),
    ([SLURM, "cluster.environment={2ND: x}"], "cluster.environment", "no name of a variable"),
    ([SLURM, "cluster.time=1h"], "cluster.time", "pattern"),
    ([SLURM, "cluster.memory=64 GB"], "cluster.memory", "pattern"),
    ([SLURM, "cluster.container={image: x, mounts: [d]}"], "cluster.container.mounts.0", "/outside:/inside"),
    (["sweep={train.sede: [1]}"], "sweep.train.sede", "did you mean train.seed?"),
    (["sweep={train.seed: []}"], "sweep.train.seed", "no values"),
    (["sweep={run.name: [a, b]}"], "sweep.run.name", "the same for all runs"),
    (["sweep={cluster.nodes: [1, 2]}"], "sweep.cluster.nodes", "the same for all runs"),
    (["sweep={train.seed: 1}"], "sweep.train.seed", "list"),
    (["sweep.train.steps=[1, -1]"], "train.steps", "greater than 0"),
    ([f"sweep.train.seed={list(range(40))}", f"sweep.train.steps={list(range(1, 31))}"], "sweep", "1,000"),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "key", "message"), BAD, ids=[" ".join(line[0])[:60] for line in BAD])
def test_refused(path: Path, overrides: list[str], key: str, message: str) -> None:
    found = problems_of(path, *overrides)
    said = [problem.message for problem in found if problem.key == key]
    assert said, [str(problem) for problem in found]
    assert any(message in text for text in said), said


@pytest.mark.parametrize(
    "overrides",
    [
        ["cluster.nodes=4", "cluster.elastic=4"],
        ["cluster.nodes=8", "cluster.processes_per_node=8", "cluster.elastic=3"],
        ["cluster.kind=local", "cluster.partition=gpu", "cluster.time=1:00:00"],
        [SLURM, "cluster.options=[--reservation=x, '-w node1', --gres=gpu:h100:8]"],
        [SLURM, "cluster.constraint=ib&(h100|h200)", "cluster.exclude=['n[1-4,7]']"],
    ],
    ids=" ".join,
)
def test_accepted(path: Path, overrides: list[str]) -> None:
    load_config(path, overrides)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 5400), ("1:30", 90), ("1:30:00", 5400), ("2-3", 183600), ("2-3:30", 185400), ("1-0:0:1", 86401)],
)
def test_time_limits(text: str, seconds: int) -> None:
    assert time_limit_seconds(text) == seconds


def test_variants_are_the_product(path: Path) -> None:
    variants = load_variants(path, ["sweep={model.preset: [tiny, llama_6m], train.seed: [1, 2]}"])
    assert [variant.config.run.name for variant in variants] == [f"run-{n:04d}" for n in range(4)]
    assert variants[2].changes == {"model.preset": "llama_6m", "train.seed": 1}
    layers = [variant.config.model.preset for variant in variants]
    assert layers == ["tiny", "tiny", "llama_6m", "llama_6m"]


def test_a_swept_preset_brings_its_own_fields(path: Path) -> None:
    tiny, large = load_variants(path, ["sweep={model.preset: [tiny, llama3_8b]}"])
    assert (tiny.config.model.layers, large.config.model.layers) == (4, 32)
