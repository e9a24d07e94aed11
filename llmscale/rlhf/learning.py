"""From rewards and log-probabilities to what each token is learned by: in the driver, over the whole batch.

Shapes: N experiences, S tokens of the longest.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from llmscale.config.rlhf import OverlongSection, RlhfSection
from llmscale.objectives.rl.advantages.rewarded import Rewarded
from llmscale.objectives.rl.advantages.table import estimate_advantages
from llmscale.objectives.rl.kl import ESTIMATORS
from llmscale.objectives.rl.overlong import overlong_reward, without_truncated
from llmscale.objectives.rl.signals import ADVANTAGES, OLD, REFERENCE, RETURNS, VALUES
from llmscale.objectives.rl.token_rewards import token_rewards
from llmscale.rlhf.experience import Experience

WHATEVER_ITS_LENGTH = OverlongSection()


@dataclass(frozen=True)
class Lesson:
    """Experiences that know their advantages, and what is told of the batch."""

    experiences: list[Experience]
    divergence: float | None
    """From the reference, nats an answer; None without one."""


def lesson(experiences: Sequence[Experience], options: RlhfSection, kl_coefficient: float) -> Lesson:
    """Advantages, and returns for a critic, of the whole batch; or, without advantages, the best answer to
    each prompt.

    Answers without a reward take no part. Those that were cut off do, even where they are not learned from.

    Args:
        experiences: with log-probabilities of actor and reference, and values, as the options need them.
        kl_coefficient: weight of the divergence now.
    """
    if options.takes_the_best:
        best = best_places(experiences, _scores(experiences, options).tolist(), options.overlong)
        return Lesson([experiences[place] for place in best], None)
    has_reward = [one.reward is not None for one in experiences]
    learned_NS = _table([one.learned_T & has for one, has in zip(experiences, has_reward)], torch.bool)
    penalty_NS, divergence = None, None
    if all(REFERENCE in one.signals and OLD in one.signals for one in experiences):
        gap_NS = _signal(experiences, OLD) - _signal(experiences, REFERENCE)
        divergence = float(torch.where(learned_NS, gap_NS, 0.0).sum() / max(1, sum(has_reward)))
        if options.kl.penalty == "reward":
            penalty_NS = kl_coefficient * ESTIMATORS[options.kl.estimator_or_default](gap_NS)
    turns_NS = _turn_rewards(experiences, learned_NS)
    at_the_end_N = _scores(experiences, options) - turns_NS.sum(dim=1)
    rewarded = Rewarded(
        token_rewards(at_the_end_N, learned_NS, penalty_NS) + turns_NS,
        learned_NS,
        torch.tensor([one.prompt for one in experiences]),
        _signal(experiences, VALUES) if options.has_critic else None,
    )
    found = estimate_advantages(rewarded, options)
    finished_N = torch.tensor([one.finished for one in experiences])
    counted_NS = without_truncated(learned_NS, finished_N, options.overlong)
    tables = {ADVANTAGES: found.advantages_NS, RETURNS: found.returns_NS}
    taught = [
        replace(one, learned_T=counted_NS[place, : len(one.tokens_T)].numpy()).knowing(
            **_of(place, len(one.tokens_T), tables)
        )
        for place, one in enumerate(experiences)
    ]
    return Lesson(taught, divergence)


def _scores(experiences: Sequence[Experience], options: RlhfSection) -> Tensor:
    """Rewards with what too long an answer costs, float64 [N]; 0 where there is none."""
    score_N = torch.tensor([one.reward or 0.0 for one in experiences], dtype=torch.float64)
    lengths_N = torch.tensor([one.answer_length for one in experiences])
    return score_N + overlong_reward(lengths_N, options.longest_answer, options.overlong)


def _turn_rewards(experiences: Sequence[Experience], learned_NS: Tensor) -> Tensor:
    """What the turns of conversations brought, each at its last token, float64 [N, S]."""
    turns_NS = torch.zeros(learned_NS.shape, dtype=torch.float64)
    for row, one in enumerate(experiences):
        for place, reward in one.turn_rewards.items():
            turns_NS[row, place] = reward
    return torch.where(learned_NS, turns_NS, 0.0)


def best_places(
    experiences: Sequence[Experience],
    scores: Sequence[float] | None = None,
    overlong: OverlongSection = WHATEVER_ITS_LENGTH,
) -> list[int]:
    """Of each prompt the place of its best answer, the first of equals; none where no answer has a reward.

    Args:
        scores: what they are compared by; None: their rewards.
        overlong: answers that were cut off may be passed over.
    """
    best: dict[int, int] = {}
    values = [one.reward or 0.0 for one in experiences] if scores is None else scores
    for place, one in enumerate(experiences):
        if one.reward is None or not (one.finished or overlong.learn_truncated):
            continue
        if one.prompt not in best or values[place] > values[best[one.prompt]]:
            best[one.prompt] = place
    return sorted(best.values())


def _signal(experiences: Sequence[Experience], name: str) -> Tensor:
    return _table([one.signals[name] for one in experiences], torch.float64)


def _table(rows: Sequence[np.ndarray], dtype: torch.dtype) -> Tensor:
    """[N, S], 0 at the ends."""
    table = torch.zeros(len(rows), max(map(len, rows)), dtype=dtype)
    for place, row in enumerate(rows):
        table[place, : len(row)] = torch.tensor(row).to(dtype)
    return table


def _of(place: int, length: int, tables: dict[str, Tensor | None]) -> dict[str, np.ndarray]:
    return {
        name: table[place, :length].numpy().astype(np.float32)
        for name, table in tables.items()
        if table is not None
    }


def minibatches(count: int, parts: int, seed: int) -> list[list[int]]:
    """Places of experiences for each optimizer step of a pass, drawn by the seed, in parts of one size."""
    order = np.random.default_rng(seed).permutation(count).tolist() if parts > 1 else list(range(count))
    return [sorted(order[part::parts]) for part in range(parts)]
