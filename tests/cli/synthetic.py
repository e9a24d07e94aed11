"""A run folder as training leaves it, without training: fails after step 60, goes on from step 50."""

import math
import random
from pathlib import Path
from typing import Any

from llmscale.config.load import write_resolved
from llmscale.config.schema import Config
from llmscale.runtime.events import EventHook, EventLog
from llmscale.runtime.hooks import Hooks, RunStart, Sample, SaveRecord, StepRecord, ValidationRecord
from llmscale.runtime.metrics import MetricsWriter
from llmscale.runtime.sample_file import SampleFile

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


def make_reward_run(root: Path, name: str, algorithm: str = "ppo", seed: int = 1) -> Path:
    """A run of reinforcement learning that finds out what is rewarded, and stays near its reference."""
    folder = root / name
    (folder / "logs").mkdir(parents=True)
    rewards = [{"kind": "math"}, {"kind": "python", "weight": 0.5}]
    tree = {
        "run": {"name": name, "root": root},
        "task": "rlhf",
        "train": {"steps": STEPS, "init_from": root},
        "rlhf": {"algorithm": algorithm, "rewards": rewards},
    }
    write_resolved(Config.model_validate(tree), folder / "config.yaml")
    source = random.Random(seed)
    hooks = Hooks([MetricsWriter(folder), EventHook(folder), SampleFile(folder)])
    hooks.on_start(RunStart(0, STEPS, 0, 0, 4, 1_000_000))
    hooks.on_validation(_answers_of(0, source))
    for step in range(1, STEPS + 1):
        told = _of_rewards(step, source) | (_of_critic(step) if algorithm == "ppo" else {})
        seconds = sum(value for key, value in told.items() if key.startswith("seconds_")) + 0.05
        hooks.on_step(StepRecord(step, step * 64, step * 800, 0.01, 1.0, 1e-3, seconds, 900.0, None, told))
        if step % 25 == 0 or step == 1:
            samples = [
                Sample("2+2", f" {step}", reward, {"math": reward, "python": 0.5}) for reward in (0.0, 1.0)
            ]
            hooks.on_samples(step, [*samples, Sample("<b>", "no <i>judge</i>", None, {"python": 0.5})])
        if step % 20 == 0:
            hooks.on_validation(_answers_of(step, source))
            hooks.on_save(SaveRecord(step, 2.5, f"checkpoints/step-{step:08d}"))
    hooks.on_end(STEPS, preempted=False)
    return folder


def _of_rewards(step: int, source: random.Random) -> dict[str, float]:
    grown = 1 / (1 + math.exp(-(step - 45) / 12))
    return {
        "clip_share": 0.02 + 0.03 * grown + source.gauss(0, 0.004),
        "entropy": 1.1 - 0.8 * grown + source.gauss(0, 0.02),
        "rollout_gap": 4e-7 * math.exp(source.gauss(0, 0.3)),
        **_of_answers(step, source),
        "kl_answer": 1.4 * grown + abs(source.gauss(0, 0.05)),
        "kl_coefficient": 0.02,
        "seconds_rollout": 3.0 - 1.5 * grown + source.gauss(0, 0.1),
        "seconds_rewards": 0.4,
        "seconds_knowing": 0.8,
        "seconds_learning": 1.6 + source.gauss(0, 0.05),
        "memory_bytes": 2.0**29,
    }


def _of_answers(step: int, source: random.Random) -> dict[str, float]:
    grown = 1 / (1 + math.exp(-(step - 45) / 12))
    mean = 0.12 + 0.85 * grown + source.gauss(0, 0.02)
    return {
        "reward_mean": mean,
        "reward_std": 0.3,
        "answer_tokens": 40 - 22 * grown + source.gauss(0, 1),
        "truncated_share": max(0.0, 0.5 - 0.55 * grown),
        "unrewarded_share": 0.01 if step % 7 == 0 else 0.0,
        "reward_math": mean * 0.9,
        "reward_python": 0.2 * grown,
    }


def _of_critic(step: int) -> dict[str, float]:
    learned = 1 - math.exp(-step / 20)
    return {"critic_value_loss": 0.2 - 0.15 * learned, "critic_explained_variance": 1.2 * learned - 0.5}


def _answers_of(step: int, source: random.Random) -> ValidationRecord:
    figures = _of_answers(step, source)
    reward = figures["reward_mean"]
    sample = Sample("What is 1+1?", f"text of step {step} </pre>", reward, {"math": 0.25, "python": 0.5})
    return ValidationRecord(step, None, None, 1.5, figures, samples=[sample], reward=reward)
