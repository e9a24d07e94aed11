"""1 for the right final number, 0 for another or none."""

from collections.abc import Sequence

from llmscale.config.rlhf_rewards import RewardTerm
from llmscale.rlhf.rewards.final_number import final_number, number_of, same
from llmscale.rlhf.rewards.reward import Means, Sample, Scored, unknown


class MathReward:
    """
    Args:
        answer: field of the record that holds the right number, or a solution that ends with it.
        marked: a number without a mark does not count.
    """

    def __init__(self, answer: str, marked: bool) -> None:
        self._answer = answer
        self._marked = marked

    def score(self, samples: Sequence[Sample]) -> list[Scored]:
        return [self._score(sample) for sample in samples]

    def _score(self, sample: Sample) -> Scored:
        right = number_of(sample.fields.get(self._answer))
        if right is None:
            said = sample.fields.get(self._answer)
            return unknown(sample, f"its field {self._answer} holds no single number, but {said!r:.80}")
        # The last number of a text that was cut is where it was cut.
        told = final_number(sample.completion, self._marked or not sample.finished)
        return Scored(
            float(told is not None and same(told, right)), parts={"answered": float(told is not None)}
        )

    def stop(self) -> None:
        """It takes no time."""

    def close(self) -> None:
        """Nothing is open."""


def open_reward(term: RewardTerm, _means: Means) -> MathReward:
    return MathReward(term.answer, term.marked)
