"""What is told of steps of reinforcement learning."""

from typing import Any

import numpy as np
import pytest

from llmscale.data.prompt_records import Prompt
from llmscale.rlhf.controller import Outcome
from llmscale.rlhf.experience import Experience
from llmscale.rlhf.state import State
from llmscale.run.rlhf_records import is_sampled, samples_of, shown_prompt, step_record, validation_record


def prompt(said: Any) -> Prompt:
    return Prompt(said, (1, 2), "prompts.jsonl, line 1", {})


def outcome() -> Outcome:
    """Six prompts, two answers of 3 tokens to each."""
    told = {"loss": 0.1, "grad_norm": 2.0, "lr": 1e-3, "tokens": 77.0, "critic_tokens": 77.0, "kl": 0.5}
    learned = np.array([False, False, True, True, True])
    experiences = [
        Experience(
            np.arange(5, dtype=np.int32),
            learned,
            number,
            place,
            0,
            True,
            rewards={"math": float(place)},
            reward=None if number == 1 else 0.5 * place,
        )
        for number in range(6)
        for place in range(2)
    ]
    texts = [f"answer {one.place} to {one.prompt}" for one in experiences]
    return Outcome(told | {"reward_mean": 0.25}, experiences, texts, [prompt(f"ask {n}") for n in range(6)])


def test_tokens_are_those_that_the_run_has_learned_from() -> None:
    record = step_record(State(step=4, prompts=24, tokens=1000), outcome(), 2.0)
    assert (record.step, record.samples, record.tokens, record.lr) == (4, 24, 1000, 1e-3)
    assert record.tokens_per_second == 12 * 3 / 2.0
    assert not {"tokens", "critic_tokens", "loss"} & record.extra.keys() and record.extra["kl"] == 0.5


def test_a_validation_is_judged_by_its_reward() -> None:
    record = validation_record(4, outcome(), 2.0)
    assert (record.loss, record.reward) == (None, 0.25)
    assert record.metrics["reward_mean"] == 0.25 and len(record.samples) == 4


def test_samples_are_the_first_answers_to_the_first_prompts() -> None:
    found = samples_of(outcome())
    assert [sample.prompt for sample in found] == [f"ask {number}" for number in range(4)]
    assert [sample.text for sample in found] == [f"answer 0 to {number}" for number in range(4)]
    assert [sample.reward for sample in found] == [0.0, None, 0.0, 0.0]
    assert found[1].rewards == {"math": 0.0}


def test_a_conversation_is_shown_message_by_message() -> None:
    said = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"})
    assert shown_prompt(prompt(said)) == "system: Be brief.\nuser: Why?"
    assert shown_prompt(prompt("Why?")) == "Why?"


@pytest.mark.parametrize(("steps", "least", "most"), [(1, 1, 1), (30, 30, 30), (1000, 40, 42), (77, 40, 80)])
def test_samples_come_evenly_over_the_run(steps: int, least: int, most: int) -> None:
    sampled = [step for step in range(1, steps + 1) if is_sampled(step, steps)]
    assert sampled[0] == 1 and sampled[-1] == steps and least <= len(sampled) <= most
