"""A run folder as training leaves it, without training: fails after step 60, goes on from step 50."""

import math
import random
from pathlib import Path

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
