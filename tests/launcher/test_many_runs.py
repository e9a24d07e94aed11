"""Sweeps and pipelines: which runs they are, in which order, and how they are found again."""

import json
import re
from pathlib import Path

import pytest
from llmscale_launcher.job import read_job

from llmscale.commands.submit import submit
from llmscale.config.load import read_resolved
from llmscale.config.problems import InputError
from llmscale.config.tree import read_tree
from tests.launcher.fake_backend import FakeBackend
from tests.launcher.fake_scheduler import FakeScheduler

TINY = Path("tiny.yaml")
LOCAL = ["cluster=local", "cluster.nodes=1"]
SWEEP = "sweep={optimizer.lr: [1e-3, 3e-4], train.seed: [1, 2, 3]}"

PIPELINE = """
pipeline:
  name: chain
  stages:
    - {name: first, config: tiny.yaml, overrides: {train.steps: 8}}
    - {name: second, config: tiny.yaml, overrides: {optimizer.lr: 1e-5}}
    - {name: third, config: tiny.yaml, after: [first, second], overrides: {train.init_from: "{second}"}}
    - {name: apart, config: tiny.yaml, after: []}
"""


@pytest.fixture
def pipeline(place: Path) -> Path:
    (place / "chain.yaml").write_text(PIPELINE)
    return Path("chain.yaml")


def keys_of(config: Path, *overrides: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        submit(config, list(overrides))
    return [problem.key for problem in caught.value.problems]


def test_a_sweep_is_one_array(place: Path, scheduler: FakeScheduler) -> None:
    submit(TINY, [SWEEP, "cluster.max_parallel=2"])
    runs = place / "runs"
    folders = [runs / f"tiny-{number:04d}" for number in range(6)]
    assert scheduler.calls("sbatch") == [["--parsable", str(runs / "tiny" / "job.sbatch")]]
    script = (runs / "tiny" / "job.sbatch").read_text()
    assert "#SBATCH --array=0-5%2\n" in script
    assert f"#SBATCH --output={runs}/tiny-%4a/logs/job.log\n" in script
    assert (runs / "tiny" / "tasks.txt").read_text().split() == [str(folder) for folder in folders]
    tried = [read_resolved(folder / "config.yaml") for folder in folders]
    assert [(config.optimizer.lr, config.train.seed) for config in tried] == [
        (lr, seed) for lr in (1e-3, 3e-4) for seed in (1, 2, 3)
    ]
    assert [config.sweep for config in tried] == [{}] * 6
    assert [(record := read_job(folder)) and record.key for folder in folders] == [f"1_{n}" for n in range(6)]
    assert len({(folder / "code").resolve() for folder in folders}) == 1
    assert all((folder / "code" / "llmscale" / "cli.py").is_file() for folder in folders)
    assert all((folder / ".token").is_file() and (folder / "logs").is_dir() for folder in folders)


def test_a_sweep_is_recorded(place: Path, scheduler: FakeScheduler) -> None:
    submit(TINY, [SWEEP])
    recorded = json.loads((place / "runs" / "tiny" / "sweep.json").read_text())
    assert recorded["name"] == "tiny"
    assert recorded["runs"][4] == {
        "run": str(place / "runs" / "tiny-0004"),
        "changes": {"optimizer.lr": 3e-4, "train.seed": 2},
        "job": "1_4",
    }


def test_a_sweep_with_a_live_run_is_not_submitted_again(place: Path, scheduler: FakeScheduler) -> None:
    submit(TINY, [SWEEP])
    scheduler.set_state("1_3", "RUNNING")
    assert keys_of(TINY, SWEEP) == ["run.name"]
    assert len(scheduler.calls("squeue")) == 1
    scheduler.set_state("1_3", "COMPLETED")
    submit(TINY, [SWEEP])
    assert len(scheduler.calls("sbatch")) == 2


@pytest.mark.parametrize("width", [1, 2])
def test_without_arrays_runs_wait_for_one_another(
    place: Path, fake_backend: type[FakeBackend], width: int
) -> None:
    submit(TINY, [*LOCAL, SWEEP, *([f"cluster.max_parallel={width}"] if width > 1 else [])])
    assert [request.folder.name for request in fake_backend.requests] == [f"tiny-{n:04d}" for n in range(6)]
    waits = [[(e.folder.name, e.until) for e in request.after] for request in fake_backend.requests]
    assert waits == [[]] * width + [[(f"tiny-{n - width:04d}", "ended")] for n in range(width, 6)]


def test_every_run_of_a_sweep_is_checked(place: Path, scheduler: FakeScheduler) -> None:
    found = keys_of(TINY, "sweep={parallel.tensor: [1, 3]}")
    assert set(found) == {"parallel.tensor", "cluster.processes_per_node"}
    assert keys_of(TINY, "sweep={train.init_from: [null, gone]}") == ["train.init_from"]
    assert not (place / "runs").exists()


def test_a_pipeline_is_a_chain_of_jobs(place: Path, pipeline: Path, scheduler: FakeScheduler) -> None:
    submit(pipeline)
    runs = place / "runs"
    names = ["first", "second", "third", "apart"]
    scripts = [call[-1] for call in scheduler.calls("sbatch")]
    assert scripts == [str(runs / f"chain-{name}" / "job.sbatch") for name in names]
    asked = [[option for option in call if "depend" in option] for call in scheduler.calls("sbatch")]
    assert asked == [[], ["--dependency=afterok:1"], ["--dependency=afterok:1,afterok:2"], []]
    configs = {name: read_resolved(runs / f"chain-{name}" / "config.yaml") for name in names}
    beginnings = {name: config.train.init_from for name, config in configs.items()}
    assert beginnings == {
        "first": None,
        "second": Path("runs/chain-first"),
        "third": Path("runs/chain-second"),
        "apart": None,
    }
    assert (configs["first"].train.steps, configs["second"].optimizer.lr) == (8, 1e-5)
    recorded = json.loads((runs / "chain" / "pipeline.json").read_text())
    assert recorded["name"] == "chain"
    assert recorded["stages"][2] == {"name": "third", "run": str(runs / "chain-third"), "job": "3"}


def test_overrides_hold_for_every_stage(place: Path, pipeline: Path, fake_backend: type[FakeBackend]) -> None:
    submit(pipeline, [*LOCAL, "train.seed=9", "run.root=elsewhere"])
    assert {request.config.train.seed for request in fake_backend.requests} == {9}
    assert {request.folder.parent for request in fake_backend.requests} == {place / "elsewhere"}
    assert [(e.folder.name, e.until) for e in fake_backend.requests[2].after] == [
        ("chain-first", "finished"),
        ("chain-second", "finished"),
    ]


def test_all_stages_are_checked_before_any_is_submitted(
    place: Path, pipeline: Path, scheduler: FakeScheduler
) -> None:
    text = PIPELINE.replace("after: []", "after: [], overrides: {data.train: [gone]}")
    pipeline.write_text(text.replace("optimizer.lr: 1e-5", "train.stpes: 4"))
    assert keys_of(pipeline) == ["second: train.stpes"]
    pipeline.write_text(text.replace("optimizer.lr: 1e-5", "model.layers: 3"))
    # The second does not fit the first, nor the third the second.
    assert keys_of(pipeline) == ["model.layers", "model.layers", "data.train.0.path"]
    assert scheduler.calls("sbatch") == []
    assert not (place / "runs").exists()


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (("after: [first, second]", "after: [first, fourth]"), "pipeline.stages.2.after"),
        (("after: [first, second]", "after: [third]"), "pipeline.stages.2.after"),
        (("name: second", "name: first"), "pipeline.stages.1.name"),
        (("{second}", "{sceond}"), "third: train.init_from"),
        (("config: tiny.yaml, after: []", "config: gone.yaml"), "apart: CONFIG"),
        (("name: chain", "name: ../chain"), "pipeline.name"),
        (("after: []", "aftre: []"), "pipeline.stages.3.aftre"),
        (("train.steps: 8", "run.name: mine"), "first: run.name"),
        (("train.steps: 8", "run.root: there"), "run.root"),
        (("train.steps: 8", "sweep: {train.seed: [1, 2]}"), "first: sweep"),
    ],
)
def test_bad_pipelines(pipeline: Path, scheduler: FakeScheduler, change: tuple[str, str], key: str) -> None:
    assert change[0] in PIPELINE
    pipeline.write_text(PIPELINE.replace(*change))
    assert key in keys_of(pipeline)
    assert scheduler.calls("sbatch") == []


SHIPPED = {
    "tiny": ["pretrain", "continue", "anneal", "sft"],
    "preferences": ["pretrain", "sft", "reward", "dpo"],
}
BEGINNINGS = {
    "tiny": [None, "pretrain", "continue", "anneal"],
    "preferences": [None, "pretrain", "sft", "sft"],
}
"""The stage whose weights each begins from."""


@pytest.mark.usefixtures("demo")
@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_pipelines(name: str, repository: Path, fake_backend: type[FakeBackend]) -> None:
    file = repository / "configs" / "pipeline" / f"{name}.yaml"
    submit(file, [])
    called = read_tree(file, "")["pipeline"]["name"]
    assert [request.folder.name for request in fake_backend.requests] == [
        f"{called}-{stage}" for stage in SHIPPED[name]
    ]
    assert [request.config.train.init_from for request in fake_backend.requests] == [
        stage and Path("runs", f"{called}-{stage}") for stage in BEGINNINGS[name]
    ]


@pytest.mark.usefixtures("demo")
@pytest.mark.parametrize(
    ("change", "stage", "message"),
    [
        (
            ("{sft}", "{reward}"),
            "reward",
            r"task=dpo needs a model that writes; .* itself: runs/preferences-sft$",
        ),
        (
            ("sft/tiny.yaml", "sft/tiny.yaml\n      overrides: {peft: prefix_tuning}"),
            "sft",
            "keys and values that are seen before each text",
        ),
    ],
)
def test_what_a_stage_will_leave_is_not_what_the_next_can_begin_from(
    repository: Path,
    place: Path,
    fake_backend: type[FakeBackend],
    change: tuple[str, str],
    stage: str,
    message: str,
) -> None:
    shipped = (repository / "configs" / "pipeline" / "preferences.yaml").read_text()
    changed = shipped.replace(*change).replace("../", f"{repository}/configs/")
    assert changed.count(change[1]) == 1
    (place / "changed.yaml").write_text(changed)
    with pytest.raises(InputError) as caught:
        submit(place / "changed.yaml", [])
    for problem in caught.value.problems:
        assert (problem.key, problem.value) == ("train.init_from", Path(f"runs/preferences-{stage}"))
        assert re.search(message, problem.message)
    assert fake_backend.requests == []
