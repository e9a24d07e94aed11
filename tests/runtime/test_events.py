"""`events.jsonl`: many writers, torn lines."""

import threading
from pathlib import Path

from llmscale.runtime.describe import describe_event
from llmscale.runtime.events import EventHook, EventLog, read_events
from llmscale.runtime.hooks import Forgetting, Hooks, RunStart, Sample, SaveRecord, ValidationRecord
from llmscale.runtime.sample_file import SampleFile, read_samples


def test_writers_do_not_mix(tmp_path: Path) -> None:
    def write(writer: int) -> None:
        log = EventLog(tmp_path)
        for step in range(50):
            log.write("saved", step, writer=writer, padding="x" * 500)

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    events = read_events(tmp_path)
    assert len(events) == 200
    for writer in range(4):
        assert [event.step for event in events if event.details["writer"] == writer] == list(range(50))


def test_torn_line_costs_itself_only(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.write("started", 0)
    with log.path.open("a") as file:
        file.write('{"event": "saved", "ti')
    log.write("failed", 7, rank=2, host="here")
    assert [(event.kind, event.step) for event in read_events(tmp_path)] == [("started", 0), ("failed", 7)]


def test_hook_tells_what_rank_0_knows(tmp_path: Path) -> None:
    hooks = Hooks([EventHook(tmp_path)])
    hooks.on_start(RunStart(step=0, steps=10, samples=0, tokens=0, world_size=1, parameters=1))
    hooks.on_start(RunStart(step=5, steps=10, samples=40, tokens=400, world_size=1, parameters=1))
    hooks.on_validation(ValidationRecord(6, 2.0, 7.4, 0.1))
    hooks.on_save(SaveRecord(10, 0.5, "checkpoints/step-00000010"))
    assert [(e.kind, e.step) for e in read_events(tmp_path)] == [
        ("resumed", 5),
        ("validated", 6),
        ("saved", 10),
    ]


def test_the_trained_share_is_told_at_every_start(tmp_path: Path) -> None:
    hook = EventHook(tmp_path)
    facts = {"device": "cpu", "peft": "lora", "trained_parameters": 12_345}
    hook.on_start(
        RunStart(step=0, steps=9, samples=0, tokens=0, world_size=1, parameters=1_000_000, facts=facts)
    )
    (event,) = read_events(tmp_path)
    assert describe_event(event.kind, event.step, event.details) == (
        "lora: 12,345 trained parameters, 1.234% of the model's 1,000,000"
    )


def test_a_validation_is_told_whole(tmp_path: Path) -> None:
    hook = EventHook(tmp_path)
    metrics = {"accuracy": 0.75, "confusion": [[3, 1], [0, 4]]}
    samples = [Sample("why?", "so\n")]
    hook.on_validation(ValidationRecord(0, 0.0, None, 0.1, metrics, Forgetting(2.5, 0.0), samples))
    hook.on_early_stop(9, "no use")
    validated, stopped = read_events(tmp_path)
    assert validated.details == {
        "loss": 0.0,
        "perplexity": None,
        "seconds": 0.1,
        "metrics": metrics,
        "forgetting": {"loss": 2.5, "score": 0.0},
        "samples": [{"prompt": "why?", "text": "so\n"}],
    }
    assert describe_event(validated.kind, validated.step, validated.details) == (
        "validation at step 0: loss 0.0000, accuracy 0.75, forgetting +0.0000"
    )
    assert describe_event(stopped.kind, stopped.step, stopped.details) == "stopped early at step 9: no use"


def test_a_validation_of_rewards_has_no_loss_and_says_what_samples_are_worth(tmp_path: Path) -> None:
    samples = [Sample("2+2", " 4", 0.75, {"math": 1.0}), Sample("2+3", " 4", None, {})]
    figures = {"reward_mean": 0.375, "answer_tokens": 3.5}
    EventHook(tmp_path).on_validation(
        ValidationRecord(6, None, None, 0.1, figures, samples=samples, reward=0.375)
    )
    (event,) = read_events(tmp_path)
    assert "loss" not in event.details and event.details["reward"] == 0.375
    assert event.details["samples"] == [
        {"prompt": "2+2", "text": " 4", "reward": 0.75, "rewards": {"math": 1.0}},
        {"prompt": "2+3", "text": " 4"},
    ]
    said = describe_event(event.kind, event.step, event.details)
    assert said == "validation at step 6: reward 0.3750, answer tokens 3.5"


def test_samples_of_a_step_that_was_repeated_are_those_of_the_last_time(tmp_path: Path) -> None:
    hook = SampleFile(tmp_path)
    for step, text in ((1, "a"), (3, "b"), (4, "c"), (3, "d")):
        hook.on_samples(step, [Sample("why?", text, 0.0)])
    found = read_samples(tmp_path)
    assert [(step, sample["text"]) for step, (sample,) in found.items()] == [(1, "a"), (3, "d"), (4, "c")]
    assert read_samples(tmp_path / "nowhere") == {}
