"""What a terminal and a log file show of a run."""

import io
import json
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from llmscale.config.schema import Config
from llmscale.runtime.describe import duration, quantity
from llmscale.runtime.events import EventLog
from llmscale.runtime.hooks import Part, RunStart
from llmscale.runtime.parts import PartFile, read_part
from llmscale.runtime.progress import Follower, Progress

LINE = {"loss": 2.5, "step_seconds": 0.5, "tokens_per_second": 12345.0, "mfu": 0.31, "memory_bytes": 2.0**30}


SAVED = ("saved", {"seconds": 0.5, "path": "x"})


def show(
    folder: Path, how: str, terminal: bool = False, event: tuple[Any, dict[str, Any]] = SAVED, **line: Any
) -> str:
    config = Config.model_validate({"train": {"steps": 100}, "logging": {"progress": how}})
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=100, color_system=None)
    with Progress(config, folder, console) as progress:
        progress.poll()
        with (folder / "metrics.jsonl").open("a") as file:
            for step in range(1, 41):
                file.write(json.dumps({"step": step, **LINE, **line}) + "\n")
        kind, details = event
        EventLog(folder).write(kind, 40, **details)
    return stream.getvalue()


def test_lines(tmp_path: Path) -> None:
    lines = show(tmp_path, "auto").splitlines()
    assert lines == [
        "saved step 40 in 0.5 s",
        "step 40/100  loss 2.5000  12.3k tokens/s  MFU 31.0%  ETA 0:30  1.00 GiB",
    ]


def test_bar_on_a_terminal(tmp_path: Path) -> None:
    shown = show(tmp_path, "auto", terminal=True)
    for part in (
        "starting 1 ranks",
        "step 40/100",
        "loss 2.5000",
        "12.3k tokens/s",
        "ETA 0:30",
        "saved step 40",
    ):
        assert part in shown


@pytest.mark.parametrize("terminal", [False, True])
def test_the_ranks_know_how_many_steps_epochs_are(tmp_path: Path, terminal: bool) -> None:
    shown = show(tmp_path, "auto", terminal, steps=60)
    assert "step 40/60" in shown and "ETA 0:10" in shown and "100" not in shown


def test_how_often_it_is_right_stands_beside_the_loss(tmp_path: Path) -> None:
    assert "loss 2.5000  accuracy 62.5%  12.3k tokens/s" in show(tmp_path, "auto", accuracy=0.625)


def test_nothing_is_left_after_an_early_stop(tmp_path: Path) -> None:
    shown = show(tmp_path, "auto", event=("stopped_early", {"cause": "no use"}), steps=60)
    assert "stopped early at step 40: no use" in shown
    assert "step 40/40" in shown and "ETA 0:00" in shown


REWARDED: dict[str, Any] = {
    "reward_mean": 0.4375,
    "kl_answer": 0.0123,
    "answer_tokens": 18.25,
    "truncated_share": 0.125,
    "unrewarded_share": 0.0,
    "rollout_gap": 4.26e-07,
}


def test_of_reinforcement_learning_the_answers_are_told_and_not_the_loss(tmp_path: Path) -> None:
    lines = show(tmp_path, "auto", **REWARDED).splitlines()
    assert lines[1] == (
        "step 40/100  reward 0.438  KL 0.0123  length 18.2  12.5% cut off  gap 4e-07  "
        "12.3k tokens/s  MFU 31.0%  ETA 0:30"
    )


def rewarded_run(root: Path) -> Config:
    tree = {
        "task": "rlhf",
        "run": {"root": root, "name": "run"},
        "train": {"steps": 100},
        "rlhf": {"algorithm": "grpo", "pools": {"all": {"roles": ["actor", "reference"], "processes": 3}}},
    }
    (root / "run").mkdir()
    return Config.model_validate(tree)


def test_the_bar_says_which_part_of_a_step_it_is(tmp_path: Path) -> None:
    config, stream = rewarded_run(tmp_path), io.StringIO()
    console = Console(file=stream, force_terminal=True, width=120, color_system=None)
    (config.run_folder / "part.json").write_text('{"step": 7, "name": "left", "count": 0, "since": 1.0}')
    hook = PartFile(config.run_folder)
    with Progress(config, config.run_folder, console) as progress:
        progress.next_read = 0.0
        progress.poll()
        assert "starting 3 workers" in stream.getvalue() and "left" not in stream.getvalue()
        hook.on_part(Part(1, "rollout", 256))
        progress.next_read = 0.0
        progress.poll()
        assert "step 1: writing answers (256)" in stream.getvalue()
        with (config.run_folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": 1, **LINE, **REWARDED}) + "\n")
        hook.on_part(Part(2, "knowing", 256))
        progress.next_read = 0.0
        progress.poll()
        shown = stream.getvalue()
        assert "reward 0.438" in shown and "step 2: log-probabilities (256)" in shown
        EventLog(config.run_folder).write("restarted", 1)
        stream.truncate(0)
        for _ in range(2):
            progress.next_read = 0.0
            progress.poll()
        assert "reward 0.438" in stream.getvalue() and "step 2" not in stream.getvalue()
        hook.on_end(1, preempted=False)
        assert read_part(config.run_folder) is None


def test_a_log_says_what_a_step_is_at_that_does_not_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, stream = rewarded_run(tmp_path), io.StringIO()
    hook = PartFile(config.run_folder)
    with Progress(config, config.run_folder, Console(file=stream, width=120)) as progress:
        hook.on_start(RunStart(4, 100, 0, 0, 3, 1))
        hook.on_part(Part(5, "rollout", 256))
        for _ in range(3):
            progress.next_read = progress.next_line = 0.0
            progress.poll()
        hook.on_phase("validating")
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + 75)
        progress.next_read = progress.next_line = 0.0
        progress.poll()
    lines = ["step 5: writing answers (256)", "step 5: validating, 1:15"]
    assert stream.getvalue().splitlines() == lines


def test_off_says_events_only(tmp_path: Path) -> None:
    assert show(tmp_path, "off") == "saved step 40 in 0.5 s\n"


def test_follower_takes_whole_lines_and_new_files(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_text('{"step": 1}\n')
    follower = Follower(path)
    assert list(follower.new()) == []
    with path.open("a") as file:
        file.write('{"step": 2}\n{"st')
    assert list(follower.new()) == [{"step": 2}]
    with path.open("a") as file:
        file.write('ep": 3}\n')
    assert list(follower.new()) == [{"step": 3}]
    (tmp_path / "new").write_text('{"step": 1}\n')
    (tmp_path / "new").replace(path)
    assert list(follower.new()) == []
    with path.open("a") as file:
        file.write('{"step": 2}\n')
    assert list(follower.new()) == [{"step": 2}]


@pytest.mark.parametrize(("number", "text"), [(7.0, "7"), (12345.0, "12.3k"), (1.5e6, "1.5M"), (2e9, "2G")])
def test_quantity(number: float, text: str) -> None:
    assert quantity(number) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (187, "3:07"), (3723, "1:02:03")])
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
