"""The reward of an answer: the weighted sum of several, and what happens where one of them is missing."""

from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType

from llmscale.config.rlhf_rewards import RewardTerm
from llmscale.rlhf.rewards.reward import NO_MEANS, Means, Reward, RewardFailed, Sample, Scored
from llmscale.rlhf.rewards.table import open_reward


class Rewards:
    """All rewards of a run.

    Args:
        terms: without problems (`llmscale.config.rlhf_rewards.reward_problems`).
        means: with the scores of the reward model where a term is of kind `model`.

    Raises:
        InputError: another run keeps its answers in the same folder.
    """

    def __init__(self, terms: Sequence[RewardTerm], means: Means = NO_MEANS) -> None:
        self.errors = dict.fromkeys((term.name_or_default for term in terms), 0)
        """Answers so far that a reward could not be told of, by its name."""
        self._terms: list[tuple[RewardTerm, Reward]] = []
        with ExitStack() as opened:
            for term in terms:
                reward = open_reward(term, means)
                opened.callback(reward.close)
                self._terms.append((term, reward))
            self._opened = opened.pop_all()

    def __enter__(self) -> "Rewards":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._opened.close()

    def stop(self) -> None:
        """From another thread or a signal handler: `score` ends soon, without rewards."""
        for _, reward in self._terms:
            reward.stop()

    def score(self, samples: Sequence[Sample]) -> list[Scored]:
        """What each is worth. An answer that one of the rewards could not be told of has no value, and an
        error; those are counted in `errors`.

        Raises:
            RewardFailed: there are more of them than `on_error` and `max_error_share` allow.
        """
        by_term: list[tuple[RewardTerm, list[Scored]]] = []
        for term, reward in self._terms:
            found = reward.score(samples)
            self._count(term, found)
            by_term.append((term, found))
        return [_summed([(term, found[place]) for term, found in by_term]) for place, _ in enumerate(samples)]

    def _count(self, term: RewardTerm, found: Sequence[Scored]) -> None:
        """
        Raises:
            RewardFailed
        """
        errors = [one.error for one in found if one.error is not None]
        self.errors[term.name_or_default] += len(errors)
        # One alone says nothing about a share, however few there are.
        allowed = max(1.0, term.max_error_share * len(found)) if term.on_error == "drop" else 0
        if len(errors) > allowed:
            raise RewardFailed(
                f"the reward {term.name_or_default} could not be told of {len(errors)} of {len(found)} "
                f"answers (on_error={term.on_error}): {errors[0]}"
            )


def _summed(found: Sequence[tuple[RewardTerm, Scored]]) -> Scored:
    parts: dict[str, float] = {}
    errors: list[str] = []
    value = 0.0
    for term, one in found:
        name = term.name_or_default
        parts |= {f"{name}.{part}": number for part, number in one.parts.items()}
        if one.value is None:
            errors.append(f"{name}: {one.error}")
        else:
            parts[name] = one.value
            value += term.weight * one.value
    return Scored(None, "; ".join(errors), parts) if errors else Scored(value, None, parts)
