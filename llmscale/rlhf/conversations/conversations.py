"""Conversations of several turns as answers: all turns of the model are one experience."""

from collections.abc import Sequence

import numpy as np

from llmscale.config.rlhf_environment import EnvironmentSection
from llmscale.data.prompt_records import Prompt
from llmscale.objectives.rl.signals import ROLLOUT
from llmscale.rlhf.answers import Answer, Rollout, Write
from llmscale.rlhf.conversations.environments import Episode, MultiTurn, record_of
from llmscale.rlhf.experience import Experience
from llmscale.rlhf.rewards.reward import RewardFailed
from llmscale.rlhf.rollout.engine import Request, Written


class Conversations:
    """
    Args:
        game: where they take place.
        longest: tokens of a conversation, at most.
    """

    def __init__(self, section: EnvironmentSection, game: MultiTurn, longest: int) -> None:
        self._section = section
        self._game = game
        self._longest = longest

    def __call__(self, rollout: Rollout, write: Write) -> list[Answer]:
        """As `Author`.

        Raises:
            RewardFailed: more of them have failed than may.
        """
        episodes = self._game.begin([record_of(rollout.prompts[prompt]) for prompt, _ in rollout.places])
        places = {episode.number: place for episode, place in zip(episodes, rollout.places, strict=True)}

        def go_on(waiting: Sequence[Episode]) -> Sequence[Written]:
            return write(
                [self._request(rollout, episode, places[episode.number]) for episode in waiting],
                rollout.options,
            )

        self._game.play(episodes, go_on)
        self._check([episode.error for episode in episodes if episode.error is not None], len(episodes))
        return [self._answer(rollout, episode, *places[episode.number]) for episode in episodes]

    def _request(self, rollout: Rollout, episode: Episode, place: tuple[int, int]) -> Request:
        room = min(rollout.options.max_new_tokens, self._longest - len(episode.tokens))
        return Request(tuple(episode.tokens), rollout.draw(*place, len(episode.turns)), room)

    def _answer(self, rollout: Rollout, episode: Episode, prompt: int, place: int) -> Answer:
        # One that failed before its first question has no tokens of its own.
        whole = episode if episode.tokens else _unasked(rollout.prompts[prompt], episode)
        experience = Experience(
            np.array(whole.tokens, np.int32),
            np.array(whole.learned, np.bool_),
            prompt,
            place,
            rollout.version,
            not episode.is_cut,
            {ROLLOUT: np.array(whole.log_probabilities, np.float32)},
            turn_rewards={turn.stop - 1: turn.reward for turn in episode.turns},
        )
        return Answer(experience, tuple(episode.messages), episode.error)

    def _check(self, errors: Sequence[str], count: int) -> None:
        # One alone says nothing about a share, however few there are.
        if len(errors) > max(1.0, self._section.max_error_share * count):
            raise RewardFailed(
                f"{len(errors)} of {count} conversations with {self._section.environment} have failed, more "
                f"than rlhf.environment.max_error_share = {self._section.max_error_share}: {errors[0]}"
            )


def _unasked(prompt: Prompt, episode: Episode) -> Episode:
    whole = Episode(episode.number, episode.record)
    whole.append(prompt.tokens)
    return whole
