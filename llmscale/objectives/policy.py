"""The policy of reinforcement learning: tokens that were better than expected become likelier.

    loss = clipped surrogate · weight − entropy · its coefficient [+ divergence · its coefficient]

each by the normalisation of `rlhf.update`.

Shapes: B rows, S tokens.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from pydantic import JsonValue
from torch import Tensor

from llmscale.config.rlhf import RlhfSection
from llmscale.data.batch import Batch
from llmscale.model.language_model import LanguageModel
from llmscale.objectives.causal_lm import CausalLM
from llmscale.objectives.objective import Objective
from llmscale.objectives.rl.importance import truncated_weights
from llmscale.objectives.rl.kl import ESTIMATORS, k3
from llmscale.objectives.rl.losses.answers import Answers
from llmscale.objectives.rl.losses.clipped import ClippedLoss, bounded_ratio, clipped
from llmscale.objectives.rl.losses.normalisation import term_count, token_weights, weighted_sum
from llmscale.objectives.rl.losses.ratio import RATIOS
from llmscale.objectives.rl.signals import ADVANTAGES, OLD, REFERENCE, ROLLOUT, WEIGHTS, signal
from llmscale.objectives.rl.told import token_figures


class _LogProbabilities(NamedTuple):
    """[B, S], 0 where nothing is learned."""

    policy_BS: Tensor
    old_BS: Tensor
    reference_BS: Tensor | None
    rollout_BS: Tensor | None


class Policy(Objective):
    """
    Args:
        options: which surrogate, and how it is bounded; any algorithm with advantages.
        temperature: at which the policy answers.
        importance_cap: of the weights of tokens that the generating engine thought less likely than the
            trainer does; None: no such weights.
        longest_answer: tokens, of `rlhf.update.normalisation: constant`.
    """

    def __init__(
        self,
        options: RlhfSection,
        temperature: float = 1.0,
        importance_cap: float | None = None,
        longest_answer: int = 1,
    ) -> None:
        self.options = options
        self.temperature = temperature
        self.importance_cap = importance_cap
        self.longest_answer = longest_answer
        self.kl_coefficient = options.kl.coefficient
        """Of a divergence in the loss; whoever steers it sets it before a step."""

    @property
    def for_fingerprint(self) -> Objective:
        return CausalLM()

    def count(self, batch: Batch) -> float:
        return term_count(Answers(batch), self.options.update.normalisation)

    def loss_sum(self, model: LanguageModel, output: Tensor, batch: Batch) -> Tensor:
        return self.loss_and_sums(model, output, batch)[0]

    @property
    def sum_count(self) -> int:
        return 14

    def sums(self, model: LanguageModel, output: Tensor, batch: Batch) -> Tensor:
        """What `metrics` divides."""
        return self.loss_and_sums(model, output, batch)[1]

    def loss_and_sums(self, model: LanguageModel, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """
        Raises:
            ValueError: the batch lacks a signal.
        """
        update, answers = self.options.update, Answers(batch)
        policy_BS, entropies_BS = token_figures(model, output, batch, self.temperature)
        known = self._known(batch, policy_BS)
        log_ratio_BS = RATIOS[update.ratio](known.policy_BS - known.old_BS, answers)
        advantages_BS = signal(batch, ADVANTAGES).to(policy_BS)
        surrogate = clipped(
            log_ratio_BS, advantages_BS, update.clip, update.clip_high_or_default, update.dual_clip
        )
        weights_BS = token_weights(answers, update.normalisation, self.longest_answer)
        policy_loss = weighted_sum(surrogate.loss * self._importance(batch, known), weights_BS)
        loss = policy_loss
        if update.entropy:
            loss = loss - update.entropy * weighted_sum(entropies_BS, weights_BS)
        kl_loss = torch.zeros_like(policy_loss)
        if self.options.kl.penalty == "loss" and self.kl_coefficient:
            kl_loss = weighted_sum(self._divergence(batch, known), weights_BS)
            loss = loss + self.kl_coefficient * kl_loss
        with torch.no_grad():
            terms = policy_loss.new_tensor(term_count(answers, update.normalisation))
            of_losses = torch.stack((terms, policy_loss, kl_loss)).double()
            of_tokens = _sums_of_tokens(answers.learned_BS, known, surrogate, entropies_BS)
        return loss, torch.cat((of_losses, of_tokens))

    def _known(self, batch: Batch, policy_BS: Tensor) -> _LogProbabilities:
        def known(name: str) -> Tensor | None:
            return signal(batch, name).to(policy_BS) if name in batch.signals else None

        old_BS = known(OLD)
        return _LogProbabilities(
            policy_BS, policy_BS.detach() if old_BS is None else old_BS, known(REFERENCE), known(ROLLOUT)
        )

    def _importance(self, batch: Batch, known: _LogProbabilities) -> Tensor:
        """[B, S], or a scalar 1."""
        weights = signal(batch, WEIGHTS).to(known.policy_BS) if WEIGHTS in batch.signals else None
        if self.importance_cap is not None:
            rollout_BS = signal(batch, ROLLOUT).to(known.policy_BS)
            importance_BS = truncated_weights(known.old_BS, rollout_BS, self.importance_cap)
            weights = importance_BS if weights is None else weights * importance_BS
        return known.policy_BS.new_ones(()) if weights is None else weights

    def _divergence(self, batch: Batch, known: _LogProbabilities) -> Tensor:
        kl = self.options.kl
        reference_BS = signal(batch, REFERENCE).to(known.policy_BS)
        divergence_BS = ESTIMATORS[kl.estimator_or_default](known.policy_BS - reference_BS)
        if not kl.weighted:
            return divergence_BS
        return divergence_BS * bounded_ratio(known.policy_BS - known.old_BS)

    def metrics(self, sums: Sequence[float]) -> Mapping[str, JsonValue]:
        """`policy_loss` and, where it is in the loss, `kl_loss`, by the normalisation. Means over tokens:
        `ratio` to the policy that answered; the shares of tokens of which nothing is learned: `clip_share`,
        and of it those that are likely enough already, `clip_high_share`, and those that would weigh too
        much, `dual_clip_share`; `entropy`; the divergences `kl_old` from the policy that answered and `kl`
        from the reference (k3; None without one); and `rollout_gap`, how far log-probabilities are from those
        of the engine that generated (None where it told none)."""
        terms, policy_loss, kl_loss, tokens, ratio, low, high, dual, entropy, kl_old = sums[:10]
        kl, reference_tokens, gap, rollout_tokens = sums[10:]
        count = max(tokens, 1.0)
        found: dict[str, JsonValue] = {
            "policy_loss": policy_loss / max(terms, 1.0),
            "ratio": ratio / count,
            "clip_share": (low + high + dual) / count,
            "clip_high_share": high / count,
            "dual_clip_share": dual / count,
            "entropy": entropy / count,
            "kl_old": kl_old / count,
            "kl": kl / reference_tokens if reference_tokens else None,
            "rollout_gap": gap / rollout_tokens if rollout_tokens else None,
        }
        if self.options.kl.penalty == "loss":
            found["kl_loss"] = kl_loss / max(terms, 1.0)
        return found


def _sums_of_tokens(
    learned_BS: Tensor, known: _LogProbabilities, surrogate: ClippedLoss, entropies_BS: Tensor
) -> Tensor:
    """What `Policy.metrics` has means over tokens of, [11], float64."""
    one_BS, unknown = torch.ones_like(entropies_BS), (torch.zeros_like(entropies_BS),) * 2
    kl_old_BS = k3(known.old_BS - known.policy_BS)  # drawn from the old one
    kl = unknown if known.reference_BS is None else (k3(known.policy_BS - known.reference_BS), one_BS)
    gap = unknown if known.rollout_BS is None else ((known.old_BS - known.rollout_BS).abs(), one_BS)
    bounds = (surrogate.is_low, surrogate.is_high, surrogate.is_dual)
    columns = (one_BS, surrogate.ratio, *bounds, entropies_BS, kl_old_BS, *kl, *gap)
    return torch.stack([torch.where(learned_BS, column.double(), 0.0).sum() for column in columns])
