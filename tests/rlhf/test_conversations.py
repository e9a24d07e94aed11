"""Conversations of several turns as answers of the loop: what is learned of them, and what they are worth."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
import pytest

from llmscale.config.rlhf import RlhfSection
from llmscale.config.rlhf_environment import EnvironmentSection
from llmscale.config.tuning import SftSection
from llmscale.data.chat.encode import ChatEncoder
from llmscale.data.prompt_records import Prompt
from llmscale.objectives.rl.signals import ADVANTAGES, OLD, RETURNS, ROLLOUT, VALUES
from llmscale.rlhf.answers import Answer, Rollout
from llmscale.rlhf.conversations.conversations import Conversations
from llmscale.rlhf.conversations.environments import MultiTurn
from llmscale.rlhf.experience import Experience
from llmscale.rlhf.judging import judged, text_of
from llmscale.rlhf.learning import lesson
from llmscale.rlhf.replay import answers_from_bytes, answers_to_bytes
from llmscale.rlhf.rewards.reward import RewardFailed, Sample, Scored
from llmscale.rlhf.rewards.weighted import Rewards
from llmscale.rlhf.rollout.engine import Request, Written
from tests.rlhf.chat_tokenizer import make_chat_tokenizer
from tests.rlhf.in_process import config_of

OBEDIENT = "tests.rlhf.odd_environments:Obedient"
LONG = 300
FOUR = (["a", "end"], ["b", "c", "d"], ["end"], ["e", "end"])
"""What the model says in four conversations."""


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> ChatEncoder:
    tokenizer = make_chat_tokenizer(tmp_path_factory.mktemp("tokenizer") / "chat")
    return ChatEncoder(tokenizer, SftSection(chat_template="chatml"), LONG)


@dataclass
class Scripted:
    """A model that says what stands in a script: of each conversation, in the order of the answers."""

    encoder: ChatEncoder
    lines: Sequence[Sequence[str]]
    asked: list[list[Request]] = field(default_factory=list)
    left: list[list[str]] = field(default_factory=list)

    def __call__(self, requests: Sequence[Request], options: object) -> list[Written]:
        if not self.asked:
            self.left = [list(lines) for lines in self.lines]
        self.asked.append(list(requests))
        said = [lines.pop(0) for lines in self.left if lines]
        assert len(said) == len(requests)
        return [self._written(text) for text in said]

    def _written(self, text: str) -> Written:
        (end,) = self.encoder.stops - {self.encoder.end_of_text}
        tokens = [*self.encoder.plain(text), end]
        return Written(tokens, [-0.25 - place for place in range(len(tokens))], True, 5)


Converse = Callable[..., tuple[list[Answer], Scripted, list[Prompt]]]


@pytest.fixture
def converse(encoder: ChatEncoder) -> Iterator[Converse]:
    """Two answers to each prompt, by a script."""
    section = EnvironmentSection(environment=OBEDIENT, turns=3, max_error_share=0.75)
    with closing(MultiTurn(section, encoder, LONG)) as game:

        def play(*lines: Sequence[str], records: Sequence[dict[str, object]] = ({}, {})):
            tokens = tuple(encoder.prompt([{"role": "user", "content": "Play."}]))
            prompts = [
                Prompt("Play.", tokens, f"line {number}", record) for number, record in enumerate(records, 1)
            ]
            options = config_of(rollout={"max_new_tokens": 40}).rlhf.rollout
            model = Scripted(encoder, lines)
            rollout = Rollout(prompts, 20, options, 0, 3)
            return Conversations(section, game, LONG)(rollout, model), model, prompts

        yield play


def test_all_turns_of_the_model_are_one_experience_and_nothing_else_is_learned(
    encoder: ChatEncoder, converse: Converse
) -> None:
    answers, _, _ = converse(*FOUR)
    assert [(one.experience.prompt, one.experience.place) for one in answers] == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
    ]
    assert {one.experience.version for one in answers} == {3}
    for answer, lines in zip(answers, FOUR):
        one = answer.experience
        runs = _runs(one)
        assert [encoder.said(one.tokens_T[first:stop].tolist()) for first, stop in runs] == lines
        for first, stop in runs:
            told = [-0.25 - place for place in range(stop - first)]
            assert one.signals[ROLLOUT][first:stop].tolist() == told
        assert not one.signals[ROLLOUT][~one.learned_T].any()
        assert [*one.turn_rewards] == [stop - 1 for _, stop in runs]
        assert one.last_answer == runs[-1][0]
    assert [one.experience.finished for one in answers] == [True, False, True, True]
    assert [[*one.experience.turn_rewards.values()] for one in answers] == [
        [0.25, 1.0],
        [0.25, 0.25, 0.25],
        [1.0],
        [0.25, 1.0],
    ]


def _runs(one: Experience) -> list[tuple[int, int]]:
    """Of learned tokens that follow each other."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], one.learned_T.astype(int), [0]))))
    return [(int(first), int(stop)) for first, stop in edges.reshape(-1, 2)]


def test_each_turn_draws_by_a_seed_of_its_own_and_has_the_room_that_is_left(
    converse: Converse,
) -> None:
    _, model, _ = converse(*FOUR)
    _, again, _ = converse(*FOUR)
    assert [len(requests) for requests in model.asked] == [4, 3, 1]
    seeds = [request.seed for requests in model.asked for request in requests]
    assert len(set(seeds)) == len(seeds)
    assert seeds == [request.seed for requests in again.asked for request in requests]
    for request in (request for requests in model.asked for request in requests):
        assert request.max_new_tokens == min(40, LONG - len(request.tokens))


def test_a_failed_conversation_has_no_reward_and_is_not_judged(
    encoder: ChatEncoder, converse: Converse
) -> None:
    answers, _, prompts = converse(["odd"], ["end"], records=[{}, {"bad": True}])
    assert [one.error is None for one in answers] == [False, True, False, False]
    unasked = answers[2].experience
    assert unasked.tokens_T.tolist() == list(prompts[1].tokens) and not unasked.learned_T.any()
    with Rewards([]) as rewards:
        found = judged(answers, prompts, rewards, encoder.said)
    assert [one.reward for one in found] == [None, 1.0, None, None]
    assert [dict(one.rewards) for one in found] == [{}, {"environment": 1.0}, {}, {}]
    taught = lesson(found, config_of(algorithm="rloo", kl=0, update={}).rlhf, 0.0).experiences
    assert [bool(one.learned_T.any()) for one in taught] == [False, True, False, False]


def test_too_many_failures_end_the_run(converse: Converse) -> None:
    words = r"4 of 4 .* have failed, more than .* = 0\.75: line 1: step raised"
    with pytest.raises(RewardFailed, match=words):
        converse(["odd"], ["odd"], ["odd"], ["odd"])


def test_rewards_judge_the_last_answer_and_add_to_what_the_environment_gave(
    encoder: ChatEncoder, converse: Converse
) -> None:
    answers, _, prompts = converse(*FOUR)
    # What waits in a checkpoint is judged as what was just written.
    answers = answers_from_bytes(answers_to_bytes(answers))

    class Lengths:
        samples: list[Sample] = []

        def score(self, samples: Sequence[Sample]) -> list[Scored]:
            self.samples += samples
            return [Scored(float(len(one.completion)), None, {"length": 9.0}) for one in samples]

    rewards = Lengths()
    found = judged(answers, prompts, rewards, encoder.said)  # type: ignore[arg-type]
    assert [one.completion for one in rewards.samples] == ["end", "d", "end", "end"]
    assert [one.reward for one in found] == [4.25, 1.75, 4.0, 4.25]
    assert found[1].rewards == {"length": 9.0, "environment": 0.75}
    said = rewards.samples[0].prompt
    assert not isinstance(said, str) and [one["role"] for one in said] == [
        "system",
        "user",
        "assistant",
        "user",
    ]
    assert encoder.said(list(rewards.samples[0].tokens[rewards.samples[0].prompt_tokens :])) == "end"
    shown = text_of(found[0], encoder.said)
    assert shown.startswith("a<|im_end|>") and "That was 'a', number 1." in shown and shown.endswith("end")


def lesson_of(algorithm: str, **update: object) -> tuple[list[Experience], RlhfSection]:
    """Two answers of two turns each, and of a reward at the end."""
    learned = np.array([False, True, True, False, True, True])
    answers = []
    for place, (first, second, end) in enumerate([(0.25, 0.5, 2.0), (1.0, 0.0, 0.0)]):
        answers.append(
            Experience(
                np.arange(6, dtype=np.int32),
                learned,
                0,
                place,
                0,
                True,
                {name: np.zeros(6, np.float32) for name in (OLD, VALUES)},
                reward=first + second + end,
                turn_rewards={2: first, 5: second},
            )
        )
    return answers, config_of(algorithm=algorithm, kl=0, update=update).rlhf


def test_the_reward_of_a_turn_comes_with_its_last_token() -> None:
    answers, options = lesson_of("ppo", gae_lambda=1.0, whiten_advantages=False)
    taught = lesson(answers, options, 0.0).experiences
    assert taught[0].signals[RETURNS].tolist() == [0, 2.75, 2.75, 0, 2.5, 2.5]
    assert taught[1].signals[RETURNS].tolist() == [0, 1.0, 1.0, 0, 0, 0]


def test_groups_are_compared_by_the_whole_conversation() -> None:
    answers, options = lesson_of("rloo")
    taught = lesson(answers, options, 0.0).experiences
    assert [one.signals[ADVANTAGES][1] for one in taught] == [1.75, -1.75]
    assert taught[0].signals[ADVANTAGES].tolist() == [0, 1.75, 1.75, 0, 1.75, 1.75]
