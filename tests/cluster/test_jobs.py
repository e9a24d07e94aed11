"""What the commands for jobs do on a real SLURM: sweeps, pipelines, status, logs, cancel, the preflight."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import Tensor

from llmscale.data.train_tokenizer import train_tokenizer
from llmscale.runtime.metrics import read_metrics
from tests.cluster.runs import DP2, SlurmPlace
from tests.cluster.waiting import wait_until

pytestmark = pytest.mark.cluster


def standing(place: SlurmPlace, name: str = "") -> dict[str, dict[str, Any]]:
    """What `llmscale status` says, by run."""
    told = json.loads(
        place.llmscale("status", *([name] if name else []), "--root", str(place.root), "--json")
    )
    return {run["name"]: run for run in told}


def test_sweep_is_a_job_array(slurm_place: SlurmPlace) -> None:
    cluster = slurm_place.cluster
    sections = yaml.safe_load(slurm_place.config.read_text())
    sections["sweep"] = {"optimizer.lr": [0.001, 0.002], "train.seed": [1, 2]}
    slurm_place.config.write_text(yaml.safe_dump(sections))
    slurm_place.llmscale("submit", str(slurm_place.config), "run.name=tries", "train.steps=5")
    group = json.loads((slurm_place.root / "tries" / "sweep.json").read_text())
    names = [run["run"].rsplit("/", 1)[1] for run in group["runs"]]
    runs = [slurm_place.submitted(name) for name in names]
    array = int(runs[0].record["id"])
    assert [run.record["array_index"] for run in runs] == [0, 1, 2, 3]
    for run in runs:
        cluster.wait_for(run.job_when_begun(), "COMPLETED", seconds=180)
    done = [[f"{array}_{index}", "COMPLETED", "0:0"] for index in range(4)]
    wait_until(lambda: sorted(cluster.sacct(array)) == done, "sacct says that all tasks are done", 20)
    assert len({tuple(run.run.stream()) for run in runs}) == 4
    found = standing(slurm_place, "tries")
    assert {name: run["state"] for name, run in found.items()} == dict.fromkeys(names, "done")


STAGES: dict[str, dict[str, Any]] = {
    "pretrain": {"train.steps": 6},
    "sft": {"task": "sft", "train.steps": 4},
    "reward": {"task": "reward", "train.steps": 3},
    "dpo": {"task": "dpo", "train.steps": 3, "train.init_from": "{sft}"},
    "rlhf": {
        "task": "rlhf",
        "train": {"steps": 2, "init_from": "{sft}", "micro_batch_size": 2, "precision": "fp32"},
        "rlhf.pools.train": {"roles": ["actor", "reference"], "processes": 2, "placement": "spread"},
        "rlhf.pools.scoring": {"roles": ["critic", "reward"], "processes": 2, "placement": "spread"},
        "rlhf.roles.reward.init_from": "{reward}",
        "rlhf.rewards": [{"kind": "model"}, {"kind": "python", "weight": 0.5}],
        "rlhf.rollout": {"prompts": 4, "answers": 2, "max_new_tokens": 8},
        "cluster.kind": "ray",
        "cluster.ray.within": "slurm",
        "cluster.nodes": 2,
        "cluster.processes_per_node": 2,
    },
}
MATRIX = "model.layers.0.self_attn.q_proj.weight"
BEGUN_FROM = {"sft": "pretrain", "reward": "sft", "dpo": "sft", "rlhf": "sft"}


def write_pipeline(place: SlurmPlace) -> Path:
    """From nothing to preferences and to a reward model: each stage with a seed of its own, and the records
    that it needs. The last one has its models on a Ray inside its allocation."""
    folder = place.place.folder
    said = [f"What is {number}? It is {number**2}." for number in range(200)]
    train_tokenizer(said, folder / "tokenizer", 366, "bpe", threads=1)
    chosen = {"train.sequence_length": 64, "tokenizer": str(folder / "tokenizer")}
    for name, rejected in (("sft", {}), ("preferences", {"rejected": " It is not."})):
        asked = [text.partition("?") for text in said]
        answer = "chosen" if rejected else "completion"
        records = [{"prompt": f"{question}?", answer: rest, **rejected} for question, _, rest in asked]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    stages = []
    for number, (name, overrides) in enumerate(STAGES.items()):
        data = "sft" if name in ("sft", "rlhf") else "preferences"
        read = {} if name == "pretrain" else chosen | {"data.train": [str(folder / f"{data}.jsonl")]}
        stages.append(
            {"name": name, "config": "slurm.yaml", "overrides": overrides | read | {"train.seed": number + 1}}
        )
    path = folder / "pipeline.yaml"
    path.write_text(yaml.safe_dump({"pipeline": {"name": "chain", "stages": stages}}))
    return path


def is_near(one: Tensor, other: Tensor) -> bool:
    """A few steps apart; weights of different seeds are further from each other than from nothing."""
    return bool((one.float() - other.float()).norm() < 0.5 * other.float().norm())


def test_pipeline_from_nothing_to_reinforcement(slurm_place: SlurmPlace) -> None:
    cluster = slurm_place.cluster

    def has_workers(node: str) -> bool:
        return bool(cluster.nodes[node].pids("ray::Worker"))

    slurm_place.llmscale("submit", str(write_pipeline(slurm_place)))
    group = json.loads((slurm_place.root / "chain" / "pipeline.json").read_text())
    stages = [slurm_place.submitted(stage["run"].rsplit("/", 1)[1]) for stage in group["stages"]]
    waiting = [cluster.job(stage.job)["dependency"] for stage in stages]
    assert waiting[0] == ""
    assert [text.partition("(")[0] for text in waiting[1:]] == [
        f"afterok:{stage.job}" for stage in stages[:-1]
    ]
    for stage in stages[:-1]:
        stage.finish()
    stages[-1].wait_until(lambda: all(map(has_workers, ("node1", "node2"))), "both nodes have workers", 120)
    stages[-1].finish()
    jobs = [cluster.job(stage.job) for stage in stages]
    assert all(before["end_time"] <= after["start_time"] for before, after in zip(jobs, jobs[1:]))
    assert [stage.run.last_step() for stage in stages] == [6, 4, 3, 3, 2]
    runs = {name: stage.run for name, stage in zip(STAGES, stages)}
    for name, before in BEGUN_FROM.items():
        config = yaml.safe_load((runs[name].folder / "config.yaml").read_text())
        assert config["train"]["init_from"] == str(runs[before].folder)
        assert is_near(runs[name].tensors()[MATRIX], runs[before].tensors()[MATRIX])
    assert "score.weight" in runs["reward"].tensors()
    assert runs["dpo"].stream()[0][3] == pytest.approx(math.log(2), abs=1e-4)
    found = standing(slurm_place, "chain")
    assert [run["state"] for run in found.values()] == ["done"] * 5
    (first, _) = read_metrics(runs["rlhf"].folder)
    assert first["first_ratio"] == 1 and {"reward_model", "reward_python"} <= set(first)


def test_failed_stage_stops_the_pipeline(slurm_place: SlurmPlace) -> None:
    """What waits for a stage that failed never starts, and leaves the queue."""
    slurm_place.llmscale("submit", str(write_pipeline(slurm_place)), "cluster.setup=[exit 1]")
    group = json.loads((slurm_place.root / "chain" / "pipeline.json").read_text())
    stages = [slurm_place.submitted(stage["run"].rsplit("/", 1)[1]) for stage in group["stages"]]
    stages[0].end("FAILED")
    for stage in stages[1:]:
        stage.end("CANCELLED")
        assert stage.run.events("started") == []


def test_cancel_saves_and_is_final(slurm_place: SlurmPlace) -> None:
    cluster = slurm_place.cluster
    submitted = slurm_place.submit("doomed", *DP2, "train.steps=100000", "checkpoint.every=100000")
    submitted.wait_for_step(5)
    running = standing(slurm_place)["doomed"]
    assert (running["state"], running["job"]["id"]) == ("running", str(submitted.job))
    slurm_place.cancel("doomed")
    assert cluster.job(submitted.job)["job_state"] not in ("RUNNING", "PENDING", "COMPLETING")
    steps = [line[0] for line in submitted.run.stream()]
    assert submitted.run.committed_steps() == steps[-1:]
    assert standing(slurm_place)["doomed"]["state"] in ("saved", "cancelled")
    assert cluster.restarts(submitted.job) == 0
    assert cluster.sacct(submitted.job)[-1][1] != "REQUEUED"


def test_cancel_of_a_waiting_job(slurm_place: SlurmPlace) -> None:
    cluster = slurm_place.cluster
    cluster.sbatch("--nodes=4", "--exclusive", "--output=/dev/null", "--wrap=sleep 600")
    submitted = slurm_place.submit("waiting")
    assert standing(slurm_place)["waiting"]["state"] == "pending"
    slurm_place.cancel("waiting")
    submitted.end("CANCELLED")
    assert submitted.run.events("started") == []


def test_logs(slurm_place: SlurmPlace) -> None:
    """`logs -f` ends with the run, and has shown it all."""
    submitted = slurm_place.submit("told", "train.steps=12")
    text = slurm_place.llmscale("logs", "told", "-f", "--job", "--root", str(slurm_place.root), seconds=180)
    submitted.finish()
    assert "saved step 3" in text and "saved step 12" in text


@pytest.mark.parametrize("exclude", [True, pytest.param(False, marks=pytest.mark.soak)])
def test_preflight_names_the_bad_node(slurm_place: SlurmPlace, exclude: bool) -> None:
    """A node that sees a copy of the run folder on a disk of its own instead of the shared one."""
    place, cluster = slurm_place, slurm_place.cluster
    layout = ("cluster.nodes=2", "cluster.preflight=true", "train.steps=6", "cluster.options=[--hold]")
    submitted = place.submit("checked", *layout, f"cluster.exclude_bad_nodes={exclude}")
    bad = cluster.nodes["node2"]
    bad.run("cp", "--archive", str(place.root), "/dev/shm/runs")
    bad.run("mount", "--bind", "/dev/shm/runs", str(place.root))
    cluster.run("scontrol", "release", str(submitted.job))
    if exclude:
        submitted.finish()
    else:
        submitted.end("FAILED")
    bad.switch_off()  # and with it the mount
    assert list(submitted.wait_for_event("preflight_failed").details["bad_nodes"]) == ["node2"]
    assert len(submitted.run.events("started")) == cluster.restarts(submitted.job) == int(exclude)
    job = cluster.job(submitted.job)
    assert job["excluded_nodes"] == ("node2" if exclude else "")
    assert (job["nodes"] == "node[1-2]") != exclude


@pytest.mark.soak
def test_unreachable_node(slurm_place: SlurmPlace) -> None:
    """srun cannot even start a task on a node that the first node does not reach: not tried for ever."""
    cluster = slurm_place.cluster
    cluster.nodes["node2"].cut_from(cluster.nodes["node1"])
    where = "cluster.options=['--nodelist=node[1-2]']"
    submitted = slurm_place.submit("unreachable", *DP2, where, "cluster.preflight=true")
    submitted.end("FAILED")
    assert [state for _, state, _ in cluster.sacct(submitted.job)] == ["REQUEUED", "REQUEUED", "FAILED"]
    assert cluster.sacct(submitted.job)[-1][2] == "3:0"
    assert len(submitted.run.events("failed")) == 1
