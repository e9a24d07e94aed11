"""The report of synthetic runs: one file that needs nothing beside it."""

import re
from html.parser import HTMLParser
from pathlib import Path

from llmscale.commands.report import write_report
from llmscale.report.gather import gather, smoothed, summary
from llmscale.report.validations import confusion, label_table, trade
from llmscale.runtime.events import EventHook
from llmscale.runtime.hooks import Forgetting, Sample, ValidationRecord
from tests.cli.synthetic import STEPS, make_run


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
