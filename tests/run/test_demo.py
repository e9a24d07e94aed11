"""The parts of the demo that need no ranks; `.ci/run` runs the whole of it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmscale.config.load import load_config
from llmscale.run import demo


@pytest.mark.parametrize("steps", [demo.FEWEST_STEPS, 57, demo.MOST_STEPS])
def test_every_pace_is_a_valid_config(repository: Path, steps: int) -> None:
    config = load_config(repository / demo.CONFIG, demo.Pace(steps, 1.0).overrides)
    assert config.train.steps == steps
    assert config.tokenizer.path == demo.TOKENIZER
    assert [entry.path for entry in config.data.train] == [demo.CORPUS]


def test_a_lost_or_doubled_step_is_noticed(tmp_path: Path) -> None:
    def write(steps: list[int]) -> None:
        lines = [json.dumps({"step": step}) + "\n" for step in steps]
        (tmp_path / "metrics.jsonl").write_text("".join(lines))

    write([1, 2, 3])
    demo.check_steps(tmp_path, 3)
    for wrong in ([1, 2], [1, 3], [1, 2, 2, 3]):
        write(wrong)
        with pytest.raises(demo.DemoFailed, match="not 1 to 3"):
            demo.check_steps(tmp_path, 3)


SAVES_SLOWLY = """
import pathlib, signal, sys, time
signal.signal(signal.SIGINT, lambda *_: (time.sleep(1), pathlib.Path("saved").touch(), sys.exit(75)))
pathlib.Path("ready").touch()
time.sleep(60)
"""
INTERRUPTED = """
import sys
from llmscale.run import demo_stage
demo_stage.command = lambda arguments: [sys.executable, "-c", sys.argv[1]]
try:
    demo_stage.llmscale("train", "config.yaml")
except demo_stage.DemoFailed as failure:
    print(failure)
"""


def test_ctrl_c_waits_until_training_has_saved(tmp_path: Path) -> None:
    demo_process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, SAVES_SLOWLY],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(demo_process.pid, signal.SIGINT)
    said, _ = demo_process.communicate(timeout=60)
    assert (tmp_path / "saved").exists()
    assert "`llmscale train config.yaml` ended with exit code 75; the same command goes on" in said
