"""The report of synthetic runs: one file that needs nothing beside it."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from llmscale.commands.report import report, write_report
from llmscale.report.gather import gather, smoothed, summary
from llmscale.report.preferences import Bin, calibration, over_steps, over_validations
from llmscale.report.rewards import seconds_of_parts
from llmscale.report.validations import confusion, figures_table, label_table, trade
from llmscale.runtime.events import EventHook
from llmscale.runtime.hooks import Forgetting, Sample, ValidationRecord
from tests.cli.synthetic import STEPS, make_preference_run, make_reward_run, make_run


class Tags(HTMLParser):
    """Which tags are open; void ones and SVG's self-closing ones close themselves."""

    VOID = ("meta", "br", "img")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_report_is_one_whole_file(tmp_path: Path) -> None:
    folders = [make_run(tmp_path, "first"), make_run(tmp_path, "second", seed=5)]
    written = write_report(folders, tmp_path / "out")
    assert sorted(path.name for path in written) == ["loss.png", "report.html"]
    assert (tmp_path / "out" / "loss.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "out" / "report.html").read_text()
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert all(source.startswith(("#", "data:")) for source in tags.sources)
    assert text.count("<svg") == 5
    for shown in ("first", "second", "killed by SIGSEGV", "node-7", "run.name", "perplexity"):
        assert shown in text
    assert "<b>Segmentation fault</b>" not in text and "&lt;b&gt;Segmentation" in text


def test_superseded_steps_are_not_counted(tmp_path: Path) -> None:
    run = gather(make_run(tmp_path, "first"))
    assert run.steps == list(range(1, STEPS + 1))
    assert [event.step for event in run.validations] == [25, 50, 75, 100]
    rows = dict(summary(run))
    assert rows["steps"] == "100 of 100"
    assert rows["training time"] == "0:10"
    assert rows["failures"] == "1, restarted 1 times"
    assert re.fullmatch(r"\d\.\d{4} → \d\.\d{4}", rows["loss"])


def test_run_without_a_step_has_a_report(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "first")
    (folder / "metrics.jsonl").unlink()
    assert [path.name for path in write_report([folder], folder)] == ["report.html"]


def test_smoothing_does_not_lag() -> None:
    line = [float(value) for value in range(200)]
    assert smoothed(line) == line


def test_what_fine_tuning_measures_is_shown(tmp_path: Path) -> None:
    """Gain against forgetting, metrics, the confusion of the best validation, and samples step by step."""
    folder, events = make_run(tmp_path, "tuned"), EventHook(tmp_path / "tuned")
    for step, loss, right in ((0, 2.0, 1), (10, 1.0, 8), (20, 1.5, 5)):
        metrics = {
            "accuracy": right / 10,
            "f1": {"calm": 0.5, "<angry>": 0.25},
            "confusion": [[right, 10 - right], [3, 7]],
        }
        sample = Sample("What is <b>?", f"text of step {step} </pre>")
        forgetting = Forgetting(3.0 + step / 100, step / 100)
        events.on_validation(ValidationRecord(step, loss, None, 0.1, metrics, forgetting, [sample]))
    events.on_early_stop(20, "1 validations in a row brought no better loss than 1.0000 at step 10")
    run = gather(folder)
    found = trade(run)
    assert found is not None
    assert (found.steps, found.gains, found.scores) == ([0, 10, 20], [0.0, 1.0, 0.5], [0.0, 0.1, 0.2])
    matrix = confusion(run)
    assert matrix is not None and (matrix.step, matrix.counts) == (10, [[8, 2], [3, 7]])
    assert label_table(matrix)[1][0] == ("calm", "10", f"{8 / 11:.3f}", "0.800", "0.500")
    written = write_report([folder], tmp_path / "out")
    assert {path.name for path in written} == {"report.html", "loss.png", "forgetting.png", "confusion.png"}
    text = (tmp_path / "out" / "report.html").read_text()
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    for shown in (
        "Task against forgetting",
        "Accuracy (validation)",
        "Confusion at step 10",
        "&lt;angry&gt;",
        "What is &lt;b&gt;?",
        "text of step 20 &lt;/pre&gt;",
        "stopped early",
        "+0.2000",
    ):
        assert shown in text, shown


def test_what_preferences_measure_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both sides in one picture, the calibration of the best validation, and the figures on the terminal."""
    reward, dpo = (make_preference_run(tmp_path, task, task) for task in ("reward", "dpo"))
    names = {path.name for path in write_report([reward], tmp_path / "of-reward")}
    assert names == {"report.html", "loss.png", "preferences.png", "calibration.png"}
    text = (tmp_path / "of-reward" / "report.html").read_text()
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    for shown in ("Accuracy", "Scores", "Calibration at step 60: expected error 9.0%", "surer than right"):
        assert f">{shown}<" in text, shown
    for cell in ("0.780", "-0.080", "120"):
        assert f"<td>{cell}</td>" in text, cell
    assert "(validation)" in text, "the calibration error has a picture of its own"
    assert "Margin (validation)" not in text, "the margin is the area between the sides"
    found = calibration(gather(reward))
    assert found is not None and (found.step, found.bins[1]) == (60, Bin(80, 0.66, 0.62))
    report([str(reward), str(dpo)], tmp_path / "of-both")
    shown = capsys.readouterr().out
    assert "calibration-reward.png" in shown and "calibration-dpo.png" not in shown
    lines = [line.split() for line in shown.splitlines()]
    assert ["Margin", "0.0000", "1.2000", "1.8000"] in lines
    assert ["KL", "to", "the", "reference", "0.0000", "4.1828", "9.0000"] in lines
    assert any("lowest loss (step 60)" in line for line in shown.splitlines())
    text = (tmp_path / "of-both" / "report.html").read_text()
    for shown in (
        "reward",
        "dpo: chosen",
        "Margin",
        "Rewards",
        "Log-probabilities of answers",
        "KL to the reference",
    ):
        assert shown in text, shown


def test_what_runs_on_rewards_measure_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ppo, grpo = (make_reward_run(tmp_path, name, name) for name in ("ppo", "grpo"))
    names = {path.name for path in write_report([ppo], tmp_path / "of-ppo")}
    assert names == {"report.html", "rewards.png", "seconds.png"}, "no loss: it tells nothing"
    text = (tmp_path / "of-ppo" / "report.html").read_text()
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    for shown in (
        *("Reward", "held-out prompts", "Parts of the reward", "Divergence from the reference", "Entropy"),
        *("Clipped tokens", "Length of answers", "without reward", "Gap between rollout and trainer"),
        *("Loss of the critic", "Variance that the critic explains", "Seconds of a step: ppo"),
        *("writing answers", "log-probabilities", "validating", "Samples of the training"),
    ):
        assert f">{shown}<" in text, shown
    for head in ("step", "prompt", "text", "reward", "math", "python"):
        assert f"<th>{head}</th>" in text, head
    assert "<td><pre>no &lt;i&gt;judge&lt;/i&gt;</pre></td><td>–</td><td>–</td><td>0.5</td>" in text
    assert "<h3>What is 1+1?</h3>" in text and ">Loss<" not in text and "(validation)" not in text
    rows = dict(summary(gather(ppo)))
    assert rows["best"].startswith("reward 0.9") and "loss" not in rows
    assert re.fullmatch(r"0\.\d{4} → \d\.\d{4}", rows["reward"])
    assert rows["layout"] == "all: actor, reference, critic on 1"
    report([str(grpo), str(make_run(tmp_path, "sft"))], tmp_path / "of-both")
    told = capsys.readouterr().out
    assert "highest reward" in told and "lowest loss" in told
    names = {path.name for path in (tmp_path / "of-both").iterdir()}
    assert names == {"report.html", "loss.png", "rewards.png", "seconds-grpo.png"}


def test_a_run_that_came_to_nothing_has_pictures(tmp_path: Path) -> None:
    folder = make_reward_run(tmp_path, "ppo")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    odd = dict.fromkeys(("kl_answer", "entropy", "critic_value_loss", "rollout_gap"), math.inf)
    first = {**json.loads(lines[0]), "grad_norm": 0.0, "critic_explained_variance": math.nan, **odd}
    (folder / "metrics.jsonl").write_text(json.dumps(first) + "\n")
    write_report([folder], tmp_path / "out")
    text = (tmp_path / "out" / "report.html").read_text()
    assert ">Entropy<" in text and ">Gradient norm<" not in text


def test_what_comes_now_and_then_costs_every_step_its_share(tmp_path: Path) -> None:
    run = gather(make_reward_run(tmp_path, "ppo"))
    found = seconds_of_parts(run)
    assert list(found) == [
        *("rollout", "rewards", "knowing", "learning", "other", "validating", "saving"),
    ]
    assert sum(found["saving"]) == pytest.approx(5 * 2.5) and max(found["saving"]) == 2.5 / 20
    # The first validation is before the first step, and of none.
    assert sum(found["validating"]) == pytest.approx(5 * 1.5)
    assert sum(map(sum, found.values())) == pytest.approx(sum(run.column("step_seconds")) + 5 * 4.0)
    assert seconds_of_parts(gather(make_run(tmp_path, "sft"))) == {}


def test_the_start_of_dpo_is_right_about_nothing(tmp_path: Path) -> None:
    """All its rewards are 0, so there is no point of accuracy at step 0."""
    run = gather(make_preference_run(tmp_path, "dpo", "dpo"))
    assert over_validations(run, "accuracy")[0] == [20, 40, 60, 80, 100]
    assert over_validations(run, "margin")[0][0] == 0
    assert over_steps(run, "accuracy")[0][0] == 2 and over_steps(run, "kl")[0][0] == 1
    table = figures_table(run)
    assert table is not None and ("Accuracy", "–", "0.7324", "0.8000") in table[1]
    assert over_validations(gather(make_preference_run(tmp_path, "r", "reward")), "accuracy")[0][0] == 0


def test_the_same_validation_may_be_first_best_and_last(tmp_path: Path) -> None:
    folder = make_preference_run(tmp_path, "dpo", "dpo")
    lines = (folder / "events.jsonl").read_text().splitlines(keepends=True)
    (folder / "events.jsonl").write_text("".join(lines[:1]))
    table = figures_table(gather(folder))
    assert table is not None and table[0] == ("", "first, lowest loss, last (step 0)")
    (folder / "events.jsonl").write_text("")
    assert figures_table(gather(folder)) is None
