"""The simple baselines: fine-tuning on the best answers (raft), and keeping them (best_of_n)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmscale.config.problems import InputError
from llmscale.config.rlhf import OverlongSection
from llmscale.data.prompt_records import Prompt
from llmscale.rlhf.best_answers import FILE, BestAnswers, EachOnce
from llmscale.rlhf.experience import Experience
from llmscale.rlhf.learning import best_places, lesson
from tests.rlhf.in_process import Loop, NumberedPrompts, config_of

NO_UPDATE: dict[str, Any] = {"update": {}, "kl": {}}


def answer(prompt: int, reward: float | None, finished: bool = True, length: int = 3) -> Experience:
    tokens = np.arange(2 + length, dtype=np.int32)
    return Experience(tokens, np.arange(2 + length) >= 2, prompt, 0, 0, finished, reward=reward)


def test_the_best_of_each_prompt_is_the_first_of_equals() -> None:
    answers = [
        answer(0, 1.0),
        answer(0, 2.0),
        answer(0, 2.0),
        answer(1, None),
        answer(1, -3.0),
        answer(2, None),
    ]
    assert best_places(answers) == [1, 4]
    cut = [answer(0, 1.0), answer(0, 2.0, finished=False)]
    assert best_places(cut) == [1]
    assert best_places(cut, None, OverlongSection(learn_truncated=False)) == [0]


def test_a_lesson_without_advantages_is_the_best_answers_after_what_their_length_costs() -> None:
    options = config_of(algorithm="raft", **NO_UPDATE, overlong={"buffer": 4}).rlhf
    answers = [answer(0, 0.5, length=1), answer(0, 0.8, length=5), answer(1, 0.1), answer(1, 0.2)]
    taught = lesson(answers, options, 0.0)
    assert taught.experiences == [answers[0], answers[3]] and taught.divergence is None


def test_only_the_best_answers_are_learned_and_models_are_asked_nothing() -> None:
    loop = Loop.begin(config_of(3, algorithm="raft", kl={}, rollout={"largest_gap": 0}))
    for _ in range(3):
        gathered = loop.controller.gather()
        assert all([*one.signals] == ["rollout_log_probabilities"] for one in gathered.experiences)
        best = [gathered.experiences[place] for place in best_places(gathered.experiences)]
        del loop.actor.learned[:]
        outcome = loop.controller.learn(gathered)
        learned = sorted(text for update in loop.actor.learned for text in update)
        assert learned == sorted(tuple(one.tokens_T.tolist()) for one in best)
        assert outcome.figures["reward_best"] == pytest.approx(
            float(np.mean([one.reward for one in best if one.reward is not None]))
        )
        assert "kl_answer" not in outcome.figures and len(loop.actor.learned) == 2
    assert loop.controller.state.prompts == 9


def kept(loop: Loop, folder: Path, steps: int) -> list[dict[str, Any]]:
    file = BestAnswers(folder, loop.controller.state.prompts)
    for _ in range(steps):
        outcome = loop.controller.learn(loop.controller.gather())
        file.append(outcome.prompts, outcome.experiences, outcome.texts)
    return [json.loads(line) for line in (folder / FILE).open()]


def best_of_n(prompts: int = 8) -> Loop:
    config = config_of(3, algorithm="best_of_n", **NO_UPDATE, rollout={"answers": 4, "largest_gap": 0})
    return Loop.begin(config, prompts=NumberedPrompts(prompts))


def test_the_best_answer_to_each_prompt_is_kept_and_nothing_is_learned(tmp_path: Path) -> None:
    loop = best_of_n()
    lines = kept(loop, tmp_path, 3)
    assert [line["prompt"] for line in lines] == [str(number) for number in range(8)]
    assert [line["number"] for line in lines] == [*range(8)]
    assert loop.actor.updates == 0 and loop.controller.state.prompts == 8
    gathered = best_of_n().controller.gather()
    for number in range(3):
        rewards = [
            one.reward for one in gathered.experiences if one.prompt == number and one.reward is not None
        ]
        assert lines[number]["reward"] == max(rewards) == lines[number]["rewards"]["even"]
        assert lines[number]["reward_mean"] == pytest.approx(float(np.mean(rewards)))
        own = [text for one, text in zip(gathered.experiences, gathered.texts) if one.prompt == number]
        assert lines[number]["answer"] in own


def test_figures_tell_the_mean_of_all_and_of_the_best() -> None:
    loop = best_of_n()
    figures = loop.controller.learn(loop.controller.gather()).figures
    assert figures["reward_best"] > figures["reward_mean"]
    assert (figures["loss"], figures["grad_norm"]) == (-figures["reward_best"], 0.0)
    told = loop.controller.validate(loop.controller.prompts.at(5, 2))
    assert len(told.experiences) == 8 and told.figures["reward_best"] > told.figures["reward_mean"]


@pytest.mark.parametrize("stop", [0, 1, 2])
@pytest.mark.parametrize("torn", ["", '{"prompt": "3", "ans', '{"prompt": "3"}\n{"prompt": "4"}\n'])
def test_a_run_goes_on_where_it_was_committed(tmp_path: Path, stop: int, torn: str) -> None:
    expected = kept(best_of_n(), tmp_path / "oracle", 3)
    stopped = best_of_n()
    kept(stopped, tmp_path / "stopped", stop)
    with (tmp_path / "stopped" / FILE).open("a") as file:
        file.write(torn)
    assert kept(stopped, tmp_path / "stopped", 3 - stop) == expected


def test_a_file_that_has_lost_lines_is_refused(tmp_path: Path) -> None:
    kept(best_of_n(), tmp_path, 2)
    with pytest.raises(InputError, match="has 6 lines of the 9 that were written"):
        BestAnswers(tmp_path, 9)


def test_a_prompt_that_nobody_can_reward_keeps_its_line(tmp_path: Path) -> None:
    file = BestAnswers(tmp_path, 0)
    asked = [Prompt("a", (1,), "line 1", {}), Prompt("b", (1,), "line 2", {})]
    file.append(asked, [answer(0, None), answer(1, 0.5), answer(1, 1.5)], ["x", "y", "z"])
    nothing, one = [json.loads(line) for line in file.path.open()]
    assert (nothing["answer"], nothing["reward"], nothing["reward_mean"]) == (None, None, None)
    assert (one["answer"], one["reward"], one["reward_mean"]) == ("z", 1.5, 1.0)


def test_every_prompt_is_asked_once() -> None:
    asked: Any = [Prompt(str(number), (number,), "", {}) for number in range(5)]
    once = EachOnce(asked)
    assert (len(once), once.at(0, 3) + once.at(3, 3), once.at(5, 3)) == (5, asked, [])
