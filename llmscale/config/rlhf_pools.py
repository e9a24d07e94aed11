"""Sections of reinforcement learning that say which model lives where (`task: rlhf`), and who writes the
answers."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from llmscale.config.section import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Section

Role = Literal["actor", "critic", "reference", "reward", "rollout"]
ROLES: tuple[Role, ...] = ("actor", "critic", "reference", "reward", "rollout")
LEARNING: tuple[Role, ...] = ("actor", "critic")
"""Those that training changes."""


class PoolSection(Section):
    """One set of processes, one a device. The roles in it take turns on all of them."""

    roles: Annotated[list[Role], Field(min_length=1)]
    processes: PositiveInt = 1
    placement: Literal["pack", "spread"] = "pack"
    """pack: on as few nodes as it takes; spread: over as many nodes as there are."""


class RoleParallelSection(Section):
    tensor: PositiveInt = 1
    """Ranks that share each matrix."""
    pipeline: PositiveInt = 1
    """Stages that the layers are cut into. Replicas fill the rest of the pool."""
    sequence: bool = False
    """Split the activations between matrices along the sequence too, over the tensor ranks."""


class RoleSection(Section):
    """One of the models. What is left out is as the run's own section of that name has it."""

    init_from: Path | None = None
    """Run, checkpoint or Hugging Face folder. Left out: actor and reference begin from `train.init_from`, the
    critic from the reward model where there is one, else from `train.init_from`."""
    parallel: RoleParallelSection = RoleParallelSection()
    zero_stage: Literal[1, 2, 3] = 1
    micro_batch_size: PositiveInt | None = None
    """Rows of `train.sequence_length` tokens at once. Left out: `train.micro_batch_size`."""
    lr: PositiveFloat | None = None
    """Peak learning rate. Left out: `optimizer.lr` (actor, critic)."""
    offload: bool = False
    """Weights rest in memory of the host between two turns (reference, reward, rollout)."""


class RolesSection(Section):
    actor: RoleSection = RoleSection()
    critic: RoleSection = RoleSection()
    reference: RoleSection = RoleSection()
    reward: RoleSection = RoleSection()
    rollout: RoleSection = RoleSection()

    def of(self, role: Role) -> RoleSection:
        return getattr(self, role)


class RolloutSection(Section):
    """Who writes the answers, and how."""

    @classmethod
    def shorthand(cls) -> str:
        return "engine"

    engine: Literal["native", "transformers"] = "native"
    """native: the actor itself, no copy of its weights; transformers: models of their own in the pool of the
    role `rollout`, given the actor's weights after each step."""
    prompts: PositiveInt = 16
    """Of a step."""
    answers: PositiveInt = 4
    """To each of them."""
    max_new_tokens: PositiveInt = 64
    temperature: PositiveFloat = 1.0
    """Below 1 the likelier tokens come more often. Log-probabilities, of the rollout as of the trainer, are
    those at this temperature, over all tokens."""
    top_k: PositiveInt | None = None
    """Only so many of the likeliest tokens are drawn from."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Only the likeliest tokens are drawn from that have this probability together."""
    batch: PositiveInt = 64
    """Answers that one replica writes at once."""
    importance_cap: PositiveFloat | None = 2.0
    """Largest weight of a token by how likely the trainer finds it over how likely the rollout found it
    (truncated importance sampling). `null`: no such weight."""
    largest_gap: NonNegativeFloat = 0.05
    """Nats a token, as a mean over a rollout, by which both may differ before the run ends: the weights were
    not those that they should be. Not asked of answers that were written ahead (`rlhf.async_steps`)."""


class ValidationAnswersSection(Section):
    """Held-out prompts that are answered now and then, without learning from it."""

    prompts: NonNegativeInt = 64
    """At most so many of them."""
    temperature: NonNegativeFloat = 0.0
    """0: the likeliest token each time."""
