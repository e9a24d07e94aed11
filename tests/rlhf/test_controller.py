"""The loop of reinforcement learning: what is learned, in which order, by which weights, and how it goes on
after a stop or a loss."""

import threading
import time
from collections import Counter
from typing import Any

import numpy as np
import pytest

from llmscale.rlhf.answers import Rollout
from llmscale.rlhf.controller import StepFailed
from llmscale.rlhf.models import Models
from llmscale.rlhf.rollout.engine import Request
from llmscale.rlhf.rollout.handover import Writers
from llmscale.rlhf.workers.lost import WorkerLost
from tests.rlhf.in_process import LocalGroup, Loop, ToyActor, ToyWriter, config_of, lost

IN_STEP = {"rollout": {"engine": "transformers", "largest_gap": 0}}
AHEAD = {"async_steps": 1, **IN_STEP}
STEPS = 6


def test_gathering_can_be_repeated_and_changes_nothing() -> None:
    loop = Loop.begin(config_of(rollout={"largest_gap": 0}))
    loop.steps(1)
    before = loop.actor.weights, loop.controller.state.as_json()
    first, second = loop.controller.gather(), loop.controller.gather()
    assert (loop.actor.weights, loop.controller.state.as_json()) == before
    assert first.texts == second.texts and first.prompts == second.prompts
    for one, other in zip(first.experiences, second.experiences, strict=True):
        assert one.reward == other.reward and np.array_equal(one.tokens_T, other.tokens_T)
        assert one.signals.keys() == other.signals.keys()
        assert all(np.array_equal(one.signals[name], other.signals[name]) for name in one.signals)


@pytest.mark.parametrize("rlhf", [IN_STEP, AHEAD], ids=["in step", "ahead"])
@pytest.mark.parametrize("stop", range(STEPS))
def test_a_run_that_was_stopped_goes_on_as_if_nothing_had_happened(rlhf: dict[str, Any], stop: int) -> None:
    oracle = Loop.begin(config_of(STEPS, **rlhf), True)
    expected = oracle.steps(STEPS)
    stopped = Loop.begin(config_of(STEPS, **rlhf), True)
    found = stopped.steps(stop)
    again = stopped.stopped_and_begun_again()
    assert found + again.steps(STEPS - stop) == expected
    assert again.actor.weights == oracle.actor.weights
    assert again.controller.state == oracle.controller.state
    assert again.actor.learned == oracle.actor.learned


def test_each_prompt_is_learned_once_and_in_order() -> None:
    for rlhf in (IN_STEP, AHEAD):
        loop = Loop.begin(config_of(STEPS, **rlhf), True)
        loop.steps(STEPS)
        learned = loop.prompts_learned()
        assert Counter(learned) == dict.fromkeys(range(3 * STEPS), 2)
        per_step = [sorted(set(learned[6 * step : 6 * step + 6])) for step in range(STEPS)]
        assert per_step == [[3 * step, 3 * step + 1, 3 * step + 2] for step in range(STEPS)]


def test_every_answer_of_the_run_has_a_draw_of_its_own() -> None:
    loop = Loop.begin(config_of(STEPS))
    options, prompts = loop.config.rlhf.rollout, loop.controller.prompts.at(0, 3)
    rollouts = [Rollout(prompts, first, options, 0, 0) for first in range(0, 30, 3)]
    draws = [one.draw(*place, turn) for one in rollouts for place in one.places for turn in range(3)]
    assert len(set(draws)) == len(draws) == 10 * 6 * 3


def test_answers_ahead_are_of_the_weights_before() -> None:
    loop = Loop.begin(config_of(STEPS, **AHEAD), True)
    versions = []
    for step in range(STEPS):
        gathered = loop.controller.gather()
        versions.append({one.version for one in gathered.experiences})
        figures = loop.controller.learn(gathered).figures
        assert figures["staleness"] == (1 if step else 0)
    assert versions == [{0}, {0}, {1}, {2}, {3}, {4}]
    assert loop.controller.state.asked == loop.controller.state.prompts == 3 * STEPS


def test_they_are_written_while_the_models_learn() -> None:
    """The second rollout waits until learning has begun: were it written before, nothing would go on."""
    loop = Loop.begin(config_of(2, **AHEAD), True)
    assert loop.writer is not None
    rollouts = []

    def before() -> None:
        rollouts.append(threading.current_thread().name)
        assert len(rollouts) == 1 or loop.actor.began.wait(20)

    loop.writer.before = before
    loop.steps(2)
    assert rollouts == ["MainThread", "ahead"]


def test_a_run_that_stops_waits_for_what_is_being_written_and_counts_it_as_asked() -> None:
    loop = Loop.begin(config_of(STEPS, **AHEAD), True)
    loop.steps(2)
    waiting = loop.controller.waiting()
    assert [answer.experience.version for answer in waiting] == [1] * 6
    assert (loop.controller.state.prompts, loop.controller.state.asked) == (6, 9)
    assert [int(answer.experience.tokens_T[0]) - 10 for answer in waiting] == [6, 6, 7, 7, 8, 8]


def test_nothing_is_written_ahead_of_the_last_step() -> None:
    loop = Loop.begin(config_of(2, **AHEAD), True)
    loop.steps(2)
    assert loop.controller.waiting() == [] and loop.writer is not None and loop.writer.given == 1


@pytest.mark.parametrize("at", range(1, 5))
def test_answers_that_are_lost_are_written_again_by_the_weights_of_now(at: int) -> None:
    """Nothing is lost, nothing learned twice, and nothing is staler than a step."""
    loop = Loop.begin(config_of(STEPS, **AHEAD), True)
    assert loop.writer is not None
    rollouts = []

    def before() -> None:
        rollouts.append(at)
        if len(rollouts) == at + 1:
            raise lost()

    loop.writer.before = before
    loop.steps(at)
    with pytest.raises(WorkerLost):
        loop.controller.gather()
    loop.writer.weights = None  # those that begin again have none
    loop.controller.forget_writers()
    figures = loop.steps(STEPS - at)
    assert [one["staleness"] for one in figures] == [0] + [1] * (STEPS - at - 1)
    assert Counter(loop.prompts_learned()) == dict.fromkeys(range(3 * STEPS), 2)


def test_a_loss_while_a_run_is_saved_costs_nothing() -> None:
    loop = Loop.begin(config_of(STEPS, **AHEAD), True)
    assert loop.writer is not None
    loop.steps(1)
    loop.controller.settle()

    def before() -> None:
        raise lost()

    loop.writer.before = before
    loop.steps(1)
    assert loop.controller.waiting() == []
    assert loop.controller.state.asked == loop.controller.state.prompts == 6
    again = loop.stopped_and_begun_again()
    again.steps(STEPS - 2)
    assert Counter(again.prompts_learned()) == dict.fromkeys(range(3 * STEPS), 2)


def test_a_validation_waits_for_what_is_being_written_and_asks_the_weights_of_now() -> None:
    with_it, without = (Loop.begin(config_of(STEPS, **AHEAD), True) for _ in range(2))
    without.steps(STEPS)
    assert with_it.writer is not None
    # Whoever does not wait gives other weights to those that are writing.
    with_it.writer.before = lambda: time.sleep(0.1 * (threading.current_thread().name == "ahead"))
    held_out = with_it.controller.prompts.at(1000, 4)
    for _ in range(STEPS):
        with_it.steps(1)
        told = with_it.controller.validate(held_out)
        assert {one.version for one in told.experiences} == {with_it.controller.state.step}
        assert len(told.experiences) == len(told.prompts) == 4
        assert told.figures["reward_mean"] == pytest.approx(
            float(np.mean([one.reward for one in told.experiences if one.reward is not None] or [0.0]))
        )
    assert with_it.actor.learned == without.actor.learned
    assert with_it.controller.state == without.controller.state


def test_the_answers_of_a_checkpoint_are_learned_by_a_run_that_writes_none_ahead() -> None:
    stopped = Loop.begin(config_of(STEPS, **AHEAD), True)
    stopped.steps(2)
    again = stopped.stopped_and_begun_again(config_of(STEPS, **IN_STEP))
    figures = again.steps(STEPS - 2)
    assert [one["staleness"] for one in figures] == [1, 0, 0, 0]
    assert Counter(again.prompts_learned()) == dict.fromkeys(range(3 * STEPS), 2)


def test_a_gap_between_rollout_and_trainer_ends_the_run_unless_it_is_of_other_weights() -> None:
    with pytest.raises(StepFailed, match=r"0\.3000 nats a token"):
        Loop.begin(config_of()).steps(1)
    ahead = {"async_steps": 1, "rollout": {"engine": "transformers", "largest_gap": 0.25}}
    with pytest.raises(StepFailed):
        Loop.begin(config_of(**ahead), True).steps(1)
    begun = Loop.begin(config_of(**AHEAD), True)
    begun.steps(1)
    begun.stopped_and_begun_again(config_of(**ahead)).steps(1)


def test_writers_get_the_weights_once_a_step_and_refuse_to_write_with_others() -> None:
    actor, writer = ToyActor(), ToyWriter()
    writers = Writers(Models(LocalGroup(actor), writer=LocalGroup(writer)))  # type: ignore[arg-type]
    for step in (0, 0, 1):
        writers.take_weights(step)
    assert writer.given == 2
    writers.forget()
    writers.take_weights(1)
    assert writer.given == 3
    actor.updates = writer.version = 5
    options = config_of().rlhf.rollout
    with pytest.raises(RuntimeError, match=r"version \{5\} have written, and 0 were to"):
        writers.write([Request((10, 9), 3, 4)], options)
