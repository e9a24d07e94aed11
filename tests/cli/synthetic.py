"""A run folder as training leaves it, without training: fails after step 60, goes on from step 50."""

import math
import random
from pathlib import Path
from typing import Any

from llmscale.config.load import write_resolved
from llmscale.config.schema import Config
from llmscale.runtime.events import EventHook, EventLog
from llmscale.runtime.hooks import Hooks, RunStart, SaveRecord, StepRecord, ValidationRecord
from llmscale.runtime.metrics import MetricsWriter

STEPS = 100


def make_run(root: Path, name: str, seed: int = 1) -> Path:
    folder = root / name
    (folder / "logs").mkdir(parents=True)
    config = Config.model_validate({"run": {"name": name, "root": root}, "train": {"steps": STEPS}})
    write_resolved(config, folder / "config.yaml")
    hooks = Hooks([MetricsWriter(folder), EventHook(folder)])
    events = EventLog(folder)
    events.write("started", 0, pid=1)
    _train(hooks, 0, 60, random.Random(seed))
    lines = ["loss is 3", "<b>Segmentation fault</b>"]
    events.write("failed", 60, rank=2, host="node-7", pid=9, cause="killed by SIGSEGV", log_lines=lines)
    events.write("restarted", 50, restart=1)
    _train(hooks, 50, STEPS, random.Random(seed + 1))
    events.write("finished", STEPS)
    (folder / "logs" / "rank-0.log").write_text("".join(f"line {number}\n" for number in range(50)))
    (folder / "logs" / "rank-1.log").write_text("hello\n")
    return folder


def _train(hooks: Hooks, first: int, last: int, source: random.Random) -> None:
    hooks.on_start(RunStart(first, STEPS, first * 8, first * 800, 4, 1_000_000))
    for step in range(first + 1, last + 1):
        loss = 3 + 5 * math.exp(-step / 20) + source.gauss(0, 0.05)
        memory = {"memory_bytes": 2.0**30}
        hooks.on_step(StepRecord(step, step * 8, step * 800, loss, 1.0, 1e-3, 0.1, 8000.0, 0.3, memory))
        if step % 25 == 0:
            hooks.on_validation(ValidationRecord(step, loss, math.exp(loss), 0.2))
            hooks.on_save(SaveRecord(step, 0.3, f"checkpoints/step-{step:08d}"))
    hooks.on_end(last, preempted=False)


def make_preference_run(root: Path, name: str, task: str, seed: int = 1) -> Path:
    """A reward model (sure of more than it knows) or a run of DPO, better until step 60 and worse then."""
    folder = root / name
    (folder / "logs").mkdir(parents=True)
    tree = {"run": {"name": name, "root": root}, "task": task, "train": {"steps": STEPS, "init_from": root}}
    write_resolved(Config.model_validate(tree), folder / "config.yaml")
    hooks, source = Hooks([MetricsWriter(folder), EventHook(folder)]), random.Random(seed)
    told = _of_reward if task == "reward" else _of_dpo
    hooks.on_start(RunStart(0, STEPS, 0, 0, 1, 1_000_000))
    hooks.on_validation(ValidationRecord(0, math.log(2), None, 0.2, told(0, source)))
    for step in range(1, STEPS + 1):
        metrics = told(step, source)
        numbers = {key: value for key, value in metrics.items() if isinstance(value, float)}
        loss = _preference_loss(step) + source.gauss(0, 0.03)
        hooks.on_step(StepRecord(step, step * 8, step * 800, loss, 1.0, 1e-3, 0.1, 8000.0, 0.3, numbers))
        if step % 20 == 0:
            hooks.on_validation(ValidationRecord(step, _preference_loss(step), None, 0.2, told(step, source)))
    hooks.on_end(STEPS, preempted=False)
    return folder


def _preference_loss(step: int) -> float:
    return 0.45 + (math.log(2) - 0.45) * math.exp(-step / 25) + max(0, step - 60) / 400


def _of_reward(step: int, source: random.Random) -> dict[str, Any]:
    grown = 1 - math.exp(-step / 30)
    chosen, rejected = 1.1 * grown, -0.9 * grown
    bins = [
        {"count": count, "share": count / 400, "confidence": sure, "accuracy": right}
        for count, sure, right in ((40, 0.53, 0.55), (80, 0.66, 0.62), (120, 0.78, 0.7), (160, 0.95, 0.84))
    ]
    return {
        "accuracy": 0.5 + 0.28 * grown + source.gauss(0, 0.03) * (step > 0),
        "margin": chosen - rejected,
        "chosen_score": chosen,
        "rejected_score": rejected,
        "calibration_error": 0.09,
        "calibration": bins,
    }


def _of_dpo(step: int, source: random.Random) -> dict[str, Any]:
    grown = step / STEPS
    chosen, rejected = 0.3 * grown - 0.5 * grown**2, -2.0 * grown
    return {
        "chosen_reward": chosen + source.gauss(0, 0.05) * grown,
        "rejected_reward": rejected + source.gauss(0, 0.05) * grown,
        "margin": chosen - rejected,
        "accuracy": 0.5 * (step > 0) + 0.3 * math.sqrt(grown),
        "chosen_log_probability": -40 - 3 * grown,
        "rejected_log_probability": -45 - 22 * grown,
        "kl": 9 * grown**1.5,
    }
