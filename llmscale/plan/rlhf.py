"""Bytes that a process of each pool needs in a run of reinforcement learning (`task: rlhf`).

All roles of a pool live in each of its processes, so what they hold adds up; what they need besides for a
while, they need one after the other. The critic and the reward model are taken to be of the actor's size.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from llmscale.config.rlhf_pools import LEARNING, Role
from llmscale.config.rlhf_roles import pools_of, role_config
from llmscale.config.schema import Config
from llmscale.plan.activations import layer_elements_per_token, logits_bytes
from llmscale.plan.memory import WIDTH, rank_memory
from llmscale.plan.parameters import stage_parameters


@dataclass(frozen=True)
class RoleMemory:
    """Bytes of one role on the fullest rank of its pool."""

    held: Mapping[str, int]
    """All the time, by kind."""
    in_turn: Mapping[str, int]
    """At the fullest moment of its turn, by kind."""

    @property
    def turn(self) -> int:
        return sum(self.in_turn.values())

    @property
    def total(self) -> int:
        return sum(self.held.values()) + self.turn


@dataclass(frozen=True)
class PoolMemory:
    """One process of a pool."""

    name: str
    roles: Mapping[Role, RoleMemory]

    @property
    def fullest(self) -> Role:
        """Whose turn is the largest."""
        return max(self.roles, key=lambda role: self.roles[role].turn)

    @property
    def total(self) -> int:
        """All that is held, and the largest turn."""
        held = sum(sum(role.held.values()) for role in self.roles.values())
        return held + self.roles[self.fullest].turn


def pool_memories(config: Config, vocabulary_size: int) -> list[PoolMemory]:
    """Every pool, with the roles in the order in which the config has them."""
    return [
        PoolMemory(name, {role: role_memory(config, role, vocabulary_size) for role in pool.roles})
        for name, pool in pools_of(config).items()
    ]


def role_memory(config: Config, role: Role, vocabulary_size: int) -> RoleMemory:
    """The fullest pipeline stage of a role."""
    own = _as_run(config, role)
    stages = range(own.parallel.pipeline)
    return max((_on_stage(own, role, vocabulary_size, stage) for stage in stages), key=lambda one: one.total)


def _as_run(config: Config, role: Role) -> Config:
    """The role's config with the batch that one of its updates is made of."""
    own, rollout = role_config(config, role), config.rlhf.rollout
    rows = -(-rollout.prompts * rollout.answers // config.rlhf.update.minibatches)
    unit = own.train.micro_batch_size * own.data_parallel
    train = own.train.model_copy(update={"global_batch_size": -(-rows // unit) * unit})
    return own.model_copy(update={"train": train})


def _on_stage(own: Config, role: Role, vocabulary_size: int, stage: int) -> RoleMemory:
    writes = role == "rollout" or (role == "actor" and own.rlhf.rollout.engine == "native")
    caches = {"keys and values of a rollout": _cache_bytes(own)} if writes else {}
    if role not in LEARNING:
        return _frozen(own, role, vocabulary_size, stage, caches)
    memory = rank_memory(own, vocabulary_size, stage)
    kinds = memory.kinds
    held = {kind: kinds.pop(kind) for kind in ("weights", "gradients", "optimizer", "buffers")}
    # Answers are written when no step is made, and the other way round.
    return RoleMemory(held, caches if sum(caches.values()) > sum(kinds.values()) else kinds)


def _frozen(
    own: Config, role: Role, vocabulary_size: int, stage: int, caches: Mapping[str, int]
) -> RoleMemory:
    """A model that only reads, or writes: a layer at a time, and logits where it gives any."""
    parallel, train, width = own.parallel, own.train, WIDTH[own.train.precision]
    count = stage_parameters(
        own.model,
        vocabulary_size,
        train.sequence_length,
        parallel.tensor,
        parallel.pipeline,
        stage,
        own.outputs,
    )
    weights = {"weights": count.total * width}
    layer = int(layer_elements_per_token(own) * train.micro_batch_size * train.sequence_length * width)
    last = stage == parallel.pipeline - 1
    reading = {"activations": layer, "logits": logits_bytes(own, vocabulary_size, width) if last else 0}
    turn = {**caches} or reading
    if own.rlhf.roles.of(role).offload:
        return RoleMemory({}, weights | turn)
    return RoleMemory(weights, turn)


def _cache_bytes(own: Config) -> int:
    """Keys and values of as many answers as a replica writes at once, at their longest."""
    model, train, parallel = own.model, own.train, own.parallel
    kept = 2 * model.kv_heads_or_default * model.head_size_or_default // parallel.tensor
    layers = model.layers // parallel.pipeline
    rollout = own.rlhf.rollout
    rows = min(rollout.batch, -(-rollout.prompts * rollout.answers // own.data_parallel))
    return rows * train.sequence_length * layers * kept * WIDTH[train.precision]
