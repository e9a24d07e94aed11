"""The score of a reward model, which lives in a group of its own."""

import math
from collections.abc import Sequence

from llmscale.config.rlhf_rewards import RewardTerm
from llmscale.rlhf.rewards.reward import Means, ModelScores, Sample, Scored, unknown


class ModelReward:
    """
    Args:
        scores: of texts as tokens, the token that ends an answer included where it was written.
    """

    def __init__(self, scores: ModelScores) -> None:
        self._scores = scores

    def score(self, samples: Sequence[Sample]) -> list[Scored]:
        """A fault of the group is raised as it is: its supervisor knows what to do."""
        if not samples:
            return []
        found = self._scores([sample.tokens for sample in samples])
        return [
            Scored(float(value)) if math.isfinite(value) else unknown(sample, f"the score is {value}")
            for sample, value in zip(samples, found, strict=True)
        ]

    def stop(self) -> None:
        """The group is not ours."""

    def close(self) -> None:
        """The group is not ours."""


def open_reward(_term: RewardTerm, means: Means) -> ModelReward:
    if means.scores is None:
        raise ValueError("a reward of kind=model needs the scores of a reward model")
    return ModelReward(means.scores)
