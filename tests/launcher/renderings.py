"""Batch scripts of many configs, rendered at a fixed place: what golden files and shellcheck look at."""

from pathlib import Path
from typing import Any

from llmscale_launcher.backends.base import Earlier, JobRequest
from llmscale_launcher.batch_script import batch_script

from llmscale.config.schema import Config

RUNS = Path("/shared/runs")

GPU_SITE: dict[str, Any] = {
    "nodes": 16,
    "processes_per_node": 8,
    "gpus_per_node": 8,
    "cpus_per_process": 12,
    "partition": "gpu,gpu-large",
    "account": "project42",
    "qos": "high",
    "time": "1-00:00:00",
    "memory": "960G",
    "constraint": "ib&(h100|h200)",
    "exclude": ["node7", "rack3-[01-12]"],
    "exclusive": True,
    "options": ["--reservation=friday", "--mail-type=END,FAIL", "--comment='the big one'"],
    "signal_seconds": 300,
    "exclude_bad_nodes": True,
}

CLUSTERS: dict[str, dict[str, Any]] = {
    "minimal": {},
    "two-nodes": {"nodes": 2, "processes_per_node": 4, "cpus_per_process": 2, "time": "2:00:00"},
    "gpu-site": GPU_SITE,
    "elastic": {"nodes": 4, "elastic": {"min_nodes": 2}},
    "no-preflight": {"preflight": False},
    "no-requeue": {"requeue": False, "max_requeues": 0},
    "few-requeues": {"max_requeues": 3, "exclude_bad_nodes": True},
    "environment": {
        "environment": {
            "NCCL_DEBUG": "WARN",
            "QUOTES": 'it\'s "both" `kinds` of $HOME',
            "EMPTY": "",
            "TWO_LINES": "one\ntwo",
        },
        "setup": ["module load cuda/12.8", 'source "$HOME/venv/bin/activate"', "ulimit -n 65536"],
    },
    "pyxis": {
        "gpus_per_node": 1,
        "container": {"image": "nvcr.io#nvidia/pytorch:25.09-py3", "mounts": ["/data:/data:ro"]},
    },
    "apptainer": {"container": {"image": "/images/my llm.sif", "runtime": "apptainer"}},
    "apptainer-gpu": {
        "gpus_per_node": 1,
        "container": {"image": "/images/llm.sif", "runtime": "apptainer", "mounts": ["/data:/data"]},
        "elastic": {"min_nodes": 1},
        "nodes": 2,
    },
    "own-python": {"python": "/opt/conda envs/llm/bin/python"},
    "exclusive-cpu": {"exclusive": True, "partition": "cpu", "memory": "120G", "time": "90"},
}
"""Name -> the cluster section beside `kind: slurm`."""

ARRAYS = {"sweep": (6, None), "sweep-two-at-once": (1000, 2)}
"""Name -> runs, and how many at once."""

IN_RAY = ("minimal", "two-nodes", "gpu-site", "elastic", "environment", "pyxis", "apptainer-gpu")
"""Those that are rendered for a Ray inside SLURM too."""


def request(name: str, cluster: dict[str, Any], tasks: int = 0) -> JobRequest:
    section = {"kind": "slurm", "python": "/opt/python/bin/python3", **cluster}
    if "container" in section and "python" not in cluster:
        del section["python"]
    config = Config.model_validate({"run": {"name": name, "root": RUNS}, "cluster": section})
    return JobRequest(
        config=config,
        folder=RUNS / name,
        tasks=tuple(RUNS / f"{name}-{place:04d}" for place in range(tasks)),
        after=(Earlier(RUNS / "before", None),),
        directory=Path("/shared/my project"),
    )


def renderings() -> dict[str, str]:
    """Every batch script, by name."""
    scripts = {f"train-{name}": batch_script(request(name, cluster)) for name, cluster in CLUSTERS.items()}
    for name in IN_RAY:
        inside: dict[str, Any] = {"kind": "ray", "ray": {"within": "slurm"}}
        scripts[f"ray-{name}"] = batch_script(request(name, CLUSTERS[name] | inside))
    for name, (tasks, at_once) in ARRAYS.items():
        limited: dict[str, Any] = {"max_parallel": at_once} if at_once else {}
        scripts[f"train-{name}"] = batch_script(request(name, limited, tasks))
    return scripts
