"""wandb: everything is told, and nothing that it does ends a run."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmscale.config.schema import Config
from llmscale.runtime.hooks import Forgetting, RunStart, Sample, StepRecord, ValidationRecord
from llmscale.runtime.standard_hooks import standard_hooks
from llmscale.runtime.wandb_hook import WandbHook, wandb_mode

START = RunStart(0, 10, 0, 0, 1, 1)
STEP = StepRecord(1, 8, 800, 2.5, 1.0, 1e-3, 0.1, 8000.0, None, {"memory_bytes": 5.0})


class FakeRun:
    def __init__(self, fail_at: int | None = None) -> None:
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.finished = False
        self.fail_at = fail_at

    def log(self, numbers: dict[str, float], step: int) -> None:
        if step == self.fail_at:
            raise ConnectionError("no route to host")
        self.logged.append((step, numbers))

    def finish(self) -> None:
        self.finished = True


class FakeTable:
    def __init__(self, columns: list[str]) -> None:
        self.columns = columns
        self.rows: list[tuple[Any, ...]] = []

    def add_data(self, *row: Any) -> None:
        self.rows.append(row)


def install(monkeypatch: pytest.MonkeyPatch, run: FakeRun | None) -> list[dict[str, Any]]:
    """Put a wandb in place whose `init` gives `run`, or fails; returns what `init` was called with."""
    calls: list[dict[str, Any]] = []

    def init(**options: Any) -> FakeRun:
        calls.append(options)
        if run is None:
            raise RuntimeError("not logged in")
        return run

    fake = SimpleNamespace(
        init=init,
        Settings=lambda **options: options,
        Table=FakeTable,
        __spec__=SimpleNamespace(name="wandb"),
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return calls


def test_steps_and_validations_are_sent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = FakeRun()
    calls = install(monkeypatch, run)
    hook = WandbHook(Config(), tmp_path, "offline")
    hook.on_start(START)
    hook.on_step(STEP)
    hook.on_validation(ValidationRecord(1, 2.0, 7.4, 0.1))
    hook.on_end(1, preempted=False)
    assert calls[0]["dir"] == tmp_path and calls[0]["mode"] == "offline"
    assert run.logged[0][0] == 1 and run.logged[0][1]["loss"] == 2.5 and "mfu" not in run.logged[0][1]
    assert run.logged[1] == (1, {"validation/loss": 2.0, "validation/perplexity": 7.4})
    assert run.finished


def test_metrics_forgetting_and_samples_are_sent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = FakeRun()
    install(monkeypatch, run)
    hook = WandbHook(Config(), tmp_path, "offline")
    hook.on_start(START)
    metrics = {"accuracy": 0.5, "confusion": [[1]], "f1": {"a": 1.0}}
    for step in (0, 5):
        samples = [Sample("why?", f"so {step}")]
        forgetting = Forgetting(3.0, 0.25)
        hook.on_validation(ValidationRecord(step, 2.0, None, 0.1, metrics, forgetting, samples))
    (_, first), (step, second) = run.logged
    table: Any = second.pop("samples")
    assert step == 5
    assert second == {
        "validation/loss": 2.0,
        "validation/accuracy": 0.5,
        "forgetting/loss": 3.0,
        "forgetting/score": 0.25,
    }
    assert table.columns == ["step", "prompt", "text"]
    assert table.rows == [(0, "why?", "so 0"), (5, "why?", "so 5")]
    assert first["samples"] is not table, "a table that was sent stays as it is"


def test_samples_have_their_rewards_and_the_parts_of_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = FakeRun()
    install(monkeypatch, run)
    hook = WandbHook(Config(), tmp_path, "offline")
    hook.on_start(START)
    samples = [
        Sample("2+2", " 4", 1.5, {"math": 1.0, "python": 0.5}),
        Sample("2+3", " 4", None, {"math": 0.0}),
    ]
    hook.on_samples(1, samples)
    hook.on_validation(ValidationRecord(2, None, None, 0.1, samples=samples[:1], reward=0.25))
    learned, held_out = (dict[str, Any](numbers) for _, numbers in run.logged)
    table = learned["training_samples"]
    assert table.columns == ["step", "prompt", "text", "reward", "math", "python"]
    assert table.rows == [(1, "2+2", " 4", 1.5, 1.0, 0.5), (1, "2+3", " 4", None, 0.0, None)]
    assert held_out.pop("samples").rows == [(2, "2+2", " 4", 1.5, 1.0, 0.5)]
    assert held_out == {"validation/reward": 0.25}


@pytest.mark.parametrize("run", [None, FakeRun(fail_at=1)])
def test_failures_turn_it_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run: FakeRun | None) -> None:
    install(monkeypatch, run)
    hook = WandbHook(Config(), tmp_path, "online")
    hook.on_start(START)
    hook.on_step(STEP)
    assert hook.run is None
    hook.on_step(STEP)
    hook.on_end(1, preempted=False)


def test_mode_follows_config_key_and_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeRun())
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert wandb_mode(Config()) == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert wandb_mode(Config()) == "online"
    assert wandb_mode(Config.model_validate({"logging": {"wandb": "offline"}})) == "offline"
    assert wandb_mode(Config.model_validate({"logging": {"wandb": "off"}})) == "off"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert wandb_mode(Config.model_validate({"logging": {"wandb": "online"}})) == "off"


def test_only_rank_0_writes(tmp_path: Path) -> None:
    off = Config.model_validate({"logging": {"wandb": "off"}})
    assert len(standard_hooks(off, tmp_path, rank=0).hooks) == 2
    assert standard_hooks(off, tmp_path, rank=1).hooks == []


def test_a_task_whose_steps_have_parts_tells_them(tmp_path: Path) -> None:
    config = Config.model_validate({"task": "rlhf", "logging": {"wandb": "off"}})
    kinds = [type(hook).__name__ for hook in standard_hooks(config, tmp_path, rank=0).hooks]
    assert kinds == ["MetricsWriter", "EventHook", "PartFile", "SampleFile"]


def test_real_wandb_offline(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("wandb")
    hook = WandbHook(Config(), tmp_path, "offline")
    hook.on_start(START)
    hook.on_step(STEP)
    hook.on_samples(1, [Sample("2+2", " 4", 1.5, {"math": 1.0}), Sample("2+3", " 4")])
    hook.on_validation(ValidationRecord(1, 2.0, 7.4, 0.1, samples=[Sample("why?", "so")]))
    hook.on_end(1, preempted=False)
    assert [entry.message for entry in caplog.records if "wandb is off" in entry.message] == []
    assert list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
