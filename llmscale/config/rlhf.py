"""Sections of reinforcement learning from rewards (`task: rlhf`): what is learned, and how far a step goes.

Defaults are those of the papers that the keys name, or what most implementations take where a paper says
nothing.
"""

from typing import Annotated, Literal

from pydantic import Field

from llmscale.config.rlhf_environment import EnvironmentSection
from llmscale.config.rlhf_pools import (
    PoolSection,
    RolesSection,
    RolloutSection,
    ValidationAnswersSection,
)
from llmscale.config.rlhf_rewards import RewardTerm
from llmscale.config.section import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Section

Algorithm = Literal["ppo", "grpo", "rloo", "reinforce_plus_plus", "raft", "best_of_n"]

UnitInterval = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class UpdateSection(Section):
    """What is made of the answers of one rollout, and how the policy learns from it."""

    epochs: PositiveInt = 1
    """Passes over the answers of a rollout."""
    minibatches: PositiveInt = 1
    """Optimizer steps of a pass. With one step a rollout the policy is still the one that answered, and
    nothing is clipped."""
    clip: Annotated[float, Field(gt=0, le=1)] = 0.2
    """By how much less than before a token may be likely until it stops learning (arXiv:1707.06347)."""
    clip_high: PositiveFloat | None = None
    """By how much more; 0.28 in arXiv:2503.14476. Left out: as `clip`."""
    dual_clip: PositiveFloat | None = None
    """Largest weight, as a ratio of probabilities, of what is to become less likely; 3 in arXiv:1912.09729.
    Left out: no bound."""
    ratio: Literal["token", "geometric", "product"] = "token"
    """Of which probabilities: of each token; of the whole answer, as the geometric mean over its tokens
    (GSPO, arXiv:2507.18071); or of the whole answer (arXiv:2402.14740). The last two with grpo and rloo."""
    normalisation: Literal["token", "sequence", "constant"] = "token"
    """Every token of the batch counts the same (arXiv:2503.14476); every answer does, by the mean over its
    tokens (arXiv:2402.03300); or every token does, and the sum is divided by answers × the most tokens that
    an answer may have (arXiv:2503.20783)."""
    entropy: NonNegativeFloat = 0.0
    """Weight of the entropy of the policy, which is added to what is to grow."""
    scale: Literal["group", "batch", "none"] = "group"
    """By which standard deviation of the rewards differences in a group are divided: of the group
    (arXiv:2402.03300), of the batch, or none (Dr. GRPO, arXiv:2503.20783); grpo."""
    baseline: Literal["none", "group"] = "none"
    """group: from each reward the mean of its group is taken first (REINFORCE++-baseline, arXiv:2501.03262);
    reinforce_plus_plus."""
    gamma: UnitInterval = 1.0
    """What a reward one token later is worth (ppo, reinforce_plus_plus)."""
    gae_lambda: UnitInterval = 0.95
    """Lambda of generalised advantage estimation (arXiv:1506.02438): 1 trusts the rewards alone, 0 the critic
    (ppo)."""
    value_clip: PositiveFloat | None = 0.2
    """By how much the critic may change its mind on a token before it stops learning from it (ppo). `null`:
    by any."""
    whiten_rewards: bool = False
    """Give the rewards of tokens variance 1 over the batch, and leave their mean (arXiv:2403.17031; ppo)."""
    whiten_advantages: bool | None = None
    """Give advantages mean 0 and variance 1 over the tokens of the batch. Left out: with ppo; always with
    reinforce_plus_plus."""

    @property
    def clip_high_or_default(self) -> float:
        return self.clip if self.clip_high is None else self.clip_high


class KlSection(Section):
    """What keeps the policy near the reference: a penalty on their divergence KL(policy ‖ reference)."""

    @classmethod
    def shorthand(cls) -> str:
        return "coefficient"

    coefficient: NonNegativeFloat = 0.02
    """Weight of the penalty, the beta of arXiv:2203.02155; of an adaptive one the first. 0: none, and no
    reference is needed."""
    penalty: Literal["reward", "loss"] = "reward"
    """Taken from the reward of each token (arXiv:1909.08593), or added to the loss (arXiv:2402.03300)."""
    estimator: Literal["k1", "k2", "k3"] | None = None
    """Of the divergence at one token, with d = log policy − log reference: d, d² / 2, or exp(−d) − 1 + d.
    Left out: the one whose gradient is that of the divergence (arXiv:2510.01555), k1 in the reward and k2 in
    the loss; arXiv:2402.03300 takes k3 in the loss."""
    weighted: bool = False
    """Each term in the loss times the ratio of policy to the one that answered, through which its gradient
    flows, too: right for k1 and k3, also after several steps on a rollout (arXiv:2512.02556)."""
    target: PositiveFloat | None = None
    """Nats an answer that the coefficient is steered to (arXiv:1909.08593). Left out: it stays as it is."""
    horizon: PositiveInt = 10_000
    """Answers over which it is; the fewer, the faster (arXiv:1909.08593)."""

    @property
    def estimator_or_default(self) -> Literal["k1", "k2", "k3"]:
        return self.estimator or ("k1" if self.penalty == "reward" else "k2")


class OverlongSection(Section):
    """Answers that are longer than they should be (arXiv:2503.14476, section 3.4)."""

    buffer: NonNegativeInt = 0
    """Tokens before the longest answer over which its penalty grows from 0. 0: no penalty."""
    penalty: PositiveFloat = 1.0
    """Taken from the reward of an answer that has reached the longest."""
    learn_truncated: bool = True
    """false: answers that were cut off teach nothing, though their rewards are compared with."""


_CLIPPED = ("epochs", "minibatches", "clip", "clip_high", "dual_clip", "normalisation", "entropy")

OF_ALGORITHM: dict[str, tuple[str, ...]] = {
    "ppo": (*_CLIPPED, "gamma", "gae_lambda", "value_clip", "whiten_rewards", "whiten_advantages"),
    "grpo": (*_CLIPPED, "ratio", "scale", "whiten_advantages"),
    "rloo": (*_CLIPPED, "ratio", "whiten_advantages"),
    "reinforce_plus_plus": (*_CLIPPED, "gamma", "baseline"),
    "raft": ("epochs", "minibatches"),
    "best_of_n": (),
}
"""Keys of `rlhf.update` that each algorithm reads."""

WITHOUT_KL = ("raft", "best_of_n")
"""Algorithms that take the best answer to each prompt as it is: they have no advantages and no reference, and
read nothing of `rlhf.kl`."""

GROUPED = ("grpo", "rloo", "raft", "best_of_n")
"""Algorithms that compare the answers to one prompt whatever their options are."""


class RlhfSection(Section):
    """Reinforcement learning from rewards (`task: rlhf`)."""

    @classmethod
    def shorthand(cls) -> str:
        return "algorithm"

    algorithm: Algorithm = "ppo"
    """PPO with a critic (arXiv:1707.06347, arXiv:2203.02155), GRPO (arXiv:2402.03300), RLOO
    (arXiv:2402.14740), REINFORCE++ (arXiv:2501.03262); raft: fine-tuning on the best of several answers
    (arXiv:2304.06767); best_of_n: no training, the best answer is kept."""
    chat_template: str | None = None
    """One of ours (`plain`, `chatml`, `llama3`, `zephyr`) or a `.jinja` file. Left out: the tokenizer's own,
    `plain` where it has none."""
    prompts: Literal["chat", "text"] = "chat"
    """chat: what a user says, in the template; text: the beginning of a document, without a template, for
    models that go on with texts (records whose prompt is a text)."""
    update: UpdateSection = UpdateSection()
    kl: KlSection = KlSection()
    overlong: OverlongSection = OverlongSection()
    rewards: list[RewardTerm] = []
    """What answers are worth: the weighted sum of these, and of what the environment gives."""
    environment: EnvironmentSection | None = None
    """What answers the answers, in conversations of several turns. Left out: an answer is the end."""
    rollout: RolloutSection = RolloutSection()
    validation: ValidationAnswersSection = ValidationAnswersSection()
    pools: dict[str, PoolSection] = {}
    """Which models live where, by the names of sets of processes. Left out: all on one, `all`, of
    `cluster.processes_per_node` processes a node."""
    roles: RolesSection = RolesSection()
    async_steps: Annotated[int, Field(ge=0, le=1)] = 0
    """1: answers are written while the model learns from those before (not with `rollout.engine: native`)."""
    call_seconds: PositiveFloat | None = 1800.0
    """How long a call of a model on all its processes may take, such as writing the answers of a step. Then
    the process that holds up the others is named, with its stack, and they start again. `null`: no limit."""

    @property
    def has_critic(self) -> bool:
        return self.algorithm == "ppo"

    @property
    def has_kl(self) -> bool:
        """A reference is asked."""
        return self.algorithm not in WITHOUT_KL and self.kl.coefficient > 0

    @property
    def takes_the_best(self) -> bool:
        """Of the answers to a prompt, and looks at no other."""
        return self.algorithm in WITHOUT_KL

    @property
    def learns(self) -> bool:
        return self.algorithm != "best_of_n"

    @property
    def longest_answer(self) -> int:
        """Tokens that a model may write to one prompt, in all its turns."""
        return self.rollout.max_new_tokens * (self.environment.turns if self.environment else 1)

    @property
    def compares_groups(self) -> bool:
        """What an answer is worth depends on the other answers to the same prompt."""
        return self.algorithm in GROUPED or self.update.baseline == "group"

    @property
    def whitens_advantages(self) -> bool:
        asked = self.update.whiten_advantages
        return self.algorithm == "ppo" if asked is None else asked
