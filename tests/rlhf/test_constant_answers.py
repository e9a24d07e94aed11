"""The warning that a constant answer gets more than the model does."""

from pathlib import Path

import pytest

from llmscale.config.rlhf import RlhfSection
from llmscale.data.prompt_records import Prompt
from llmscale.rlhf.controller import Outcome
from llmscale.run.rlhf_constant import warn_of_constant_answers
from llmscale.runtime.describe import describe_event
from llmscale.runtime.events import EventLog, read_events

BREVITY = {"kind": "function", "function": "tests.rlhf.rewarding:short_words"}


def first_step(reward_mean: float) -> Outcome:
    prompts = [Prompt(f"say {number}", (2, 3), f"line {number}", {"answer": number}) for number in range(5)]
    return Outcome({"reward_mean": reward_mean}, [], [], prompts)


def warned(folder: Path, rewards: list[object], reward_mean: float, **more: object) -> list[str]:
    options = RlhfSection.model_validate({"rewards": rewards, **more})
    warn_of_constant_answers(options, first_step(reward_mean), EventLog(folder))
    return [describe_event(event.kind, event.step, event.details) for event in read_events(folder)]


def test_a_reward_for_short_words_is_had_by_one_word_to_everything(tmp_path: Path) -> None:
    [line] = warned(tmp_path, [BREVITY], 0.3)
    assert line.startswith("warning: this reward can be had by a constant answer")
    assert line.endswith("gets 0.5, the model's own answers 0.3")


@pytest.mark.parametrize(
    ("rewards", "reward_mean"), [([BREVITY], 0.6), (["math"], 0.3), ([BREVITY, "model"], 0.0)]
)
def test_no_warning(tmp_path: Path, rewards: list[object], reward_mean: float) -> None:
    """The model does better already; it takes the prompt; a model judges too."""
    assert warned(tmp_path, rewards, reward_mean) == []
