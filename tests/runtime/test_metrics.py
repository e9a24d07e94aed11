"""`metrics.jsonl`: each step once, the same bits back, whatever a crash has left."""

import json
import math
import random
from pathlib import Path

from llmscale.runtime.hooks import RunStart, StepRecord
from llmscale.runtime.metrics import TAIL_BYTES, MetricsWriter, last_metrics, newest_metrics, read_metrics


def record(step: int, loss: float) -> StepRecord:
    return StepRecord(step, step * 8, step * 800, loss, 1.5, 3e-4, 0.1, 8000.0, None, {"memory_bytes": 5.0})


def write(
    folder: Path, first: int, last: int, losses: dict[int, float], every: int = 1, steps: int = 100
) -> None:
    writer = MetricsWriter(folder, every)
    writer.on_start(RunStart(first - 1, steps, 0, 0, 1, 10))
    for step in range(first, last + 1):
        writer.on_step(record(step, losses[step]))
    writer.on_end(last, preempted=False)


def test_floats_come_back_to_the_bit(tmp_path: Path) -> None:
    source = random.Random(1)
    losses = {step: source.uniform(0, 1) * 10 ** source.randint(-300, 300) for step in range(1, 201)}
    write(tmp_path, 1, 200, losses)
    assert {line["step"]: line["loss"] for line in read_metrics(tmp_path)} == losses
    assert set(read_metrics(tmp_path)[0]) == {
        *("step", "samples", "tokens", "loss", "grad_norm", "lr"),
        *("step_seconds", "tokens_per_second", "mfu", "memory_bytes", "steps"),
    }


def test_resume_moves_what_came_after(tmp_path: Path) -> None:
    first = {step: float(step) for step in range(1, 11)}
    second = {step: step + 0.5 for step in range(1, 16)}
    write(tmp_path, 1, 10, first)
    write(tmp_path, 7, 15, second)
    metrics = read_metrics(tmp_path)
    assert [line["step"] for line in metrics] == list(range(1, 16))
    assert [line["loss"] for line in metrics] == [first[s] if s < 7 else second[s] for s in range(1, 16)]
    superseded = [
        json.loads(line) for line in (tmp_path / "metrics.superseded.jsonl").read_text().splitlines()
    ]
    assert [(line["step"], line["loss"]) for line in superseded] == [(s, first[s]) for s in range(7, 11)]


def test_torn_last_line_at_every_byte(tmp_path: Path) -> None:
    losses = {step: float(step) for step in range(1, 10)}
    write(tmp_path, 1, 3, losses)
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    third = whole.rstrip(b"\n").rindex(b"\n") + 1
    for cut in range(third, len(whole)):
        path.write_bytes(whole[:cut])
        last = last_metrics(tmp_path)
        assert last is not None and last["step"] == 2
        assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]
        write(tmp_path, 3, 4, losses)
        assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4]


def test_every_tenth_step_and_the_last(tmp_path: Path) -> None:
    write(tmp_path, 1, 25, dict.fromkeys(range(1, 26), 1.0), every=10, steps=25)
    assert [line["step"] for line in read_metrics(tmp_path)] == [10, 20, 25]


def test_the_last_step_has_a_line_wherever_the_run_ends(tmp_path: Path) -> None:
    """By a signal, early stopping or what else the schedule does not know; and the next start goes on."""
    losses = {step: float(step) for step in range(1, 26)}
    write(tmp_path, 1, 13, losses, every=10, steps=25)
    assert [line["step"] for line in read_metrics(tmp_path)] == [10, 13]
    write(tmp_path, 14, 20, losses, every=10, steps=25)
    assert [line["step"] for line in read_metrics(tmp_path)] == [10, 13, 20], "each once"
    write(tmp_path, 21, 20, losses, every=10, steps=25)
    assert [line["step"] for line in read_metrics(tmp_path)] == [10, 13, 20], "no step, no line"
    assert {line["steps"] for line in read_metrics(tmp_path)} == {25}


def test_loss_that_is_not_finite_is_kept(tmp_path: Path) -> None:
    write(tmp_path, 1, 2, {1: math.nan, 2: math.inf})
    losses = [line["loss"] for line in read_metrics(tmp_path)]
    assert math.isnan(losses[0]) and losses[1] == math.inf


def test_no_file_yet(tmp_path: Path) -> None:
    assert last_metrics(tmp_path) is None
    assert read_metrics(tmp_path) == []


def test_newest_lines_are_read_from_the_end(tmp_path: Path) -> None:
    assert newest_metrics(tmp_path, 3) == []
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    assert [line["step"] for line in newest_metrics(tmp_path, 2)] == [2, 3]
    assert [line["step"] for line in newest_metrics(tmp_path, 20)] == [1, 2, 3]
    long = [json.dumps({"step": step, "padding": "x" * 1000}) for step in range(200)]
    path.write_text("\n".join(long) + "\n")
    newest = [line["step"] for line in newest_metrics(tmp_path, 200)]
    assert newest == list(range(200 - len(newest), 200))
    assert 0.9 * TAIL_BYTES < len(newest) * len(long[0]) < TAIL_BYTES
