"""The models of a run of reinforcement learning: what the driver calls on each rank of their pools.

A method gets the experiences of this rank's replica, and returns one result for each of them, or figures that
are the same on every rank. All ranks of a pool are called alike.

Shapes: T tokens of an experience, B rows, S tokens of a row.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from pydantic import JsonValue
from torch import Tensor

from llmscale.checkpoint.agreement import Agreement
from llmscale.checkpoint.begin import begin_from
from llmscale.checkpoint.checkpointer import Checkpointer
from llmscale.checkpoint.tuned import tuning_problems
from llmscale.config.rlhf_pools import RolloutSection
from llmscale.config.rlhf_roles import role_config
from llmscale.config.schema import Config
from llmscale.data.batch import Batch
from llmscale.data.chat.encode import chat_encoder
from llmscale.data.checks import resolved_vocabulary_size
from llmscale.engine import fingerprint
from llmscale.engine.ask import Tell, ask
from llmscale.engine.engine import Engine
from llmscale.engine.resting import Resting
from llmscale.model.build import DTYPES
from llmscale.model.language_model import LanguageModel
from llmscale.model.peft.off import peft_off
from llmscale.model.tensors import not_begun_from, vocabulary_tensors
from llmscale.objectives.causal_lm import CausalLM
from llmscale.objectives.objective import Objective
from llmscale.objectives.policy import Policy
from llmscale.objectives.rl.told import token_figures, token_values
from llmscale.objectives.value import Value
from llmscale.parallel.cores import use_cores
from llmscale.parallel.device import rank_device
from llmscale.parallel.distributed import connect
from llmscale.parallel.environment import RankEnvironment
from llmscale.parallel.layout import Layout
from llmscale.parallel.world import World
from llmscale.rlhf.experience import Experience, Floats
from llmscale.rlhf.rollout.buckets import Bucket, dealt
from llmscale.rlhf.rollout.engine import Request, Written
from llmscale.rlhf.rollout.native import NativeRollout
from llmscale.rlhf.rollout.sync import BUCKET_BYTES, buckets, weight_shapes
from llmscale.rlhf.rollout.transformers import TransformersRollout
from llmscale.rlhf.rows import Packed, pack
from llmscale.rlhf.workers.group import speaks
from llmscale.run.beginnings import scores_texts
from llmscale.run.prepare_model import Preparation, find_start
from llmscale.run.references import held_reference
from llmscale.run.reward_model import load_reward_model
from llmscale.run.target import find_target
from llmscale.run.training import description_of
from llmscale.runtime.hooks import numbers_of

Figures = dict[str, float]


class _OnRank:
    """What all roles have: a world of their own, and rows of experiences.

    Args:
        config: of the role.
    """

    def __init__(self, config: Config, environment: RankEnvironment) -> None:
        self.config = config
        use_cores(environment, config.cluster.threads, config.cluster.numa_binding)
        device = connect(environment, config.cluster.backend)
        self.world = World(Layout.of(config.parallel, environment.world_size), device)
        self.speaks = speaks(self.world.layout, self.world.rank)

    def described(self) -> dict[str, JsonValue]:
        return {"layout": dict(self.world.layout.describe()), "device": str(self.world.device)}

    def packed(self, experiences: Sequence[Experience]) -> Packed:
        train = self.config.train
        virtual = self.config.peft.placeholders
        return pack(experiences, train.sequence_length, train.micro_batch_size, self.world, virtual)


class Trained(_OnRank):
    """A model that learns: actor or critic."""

    def __init__(self, config: Config, environment: RankEnvironment, objective: Objective) -> None:
        super().__init__(config, environment)
        self.agreement = Agreement(self.world.rank, self.world.layout.world_size, self.world.control_group)
        start = find_start(config, config.checkpoint, self.agreement)
        self.preparation = Preparation(config, self.agreement, start)
        vocabulary_size = resolved_vocabulary_size(config)
        self.engine = Engine(config, self.world, vocabulary_size, objective, self.preparation)
        description = description_of(config, self.world) | self.preparation.description
        options = config.checkpoint.model_copy(update={"asynchronous": False, "on_error": "stop"})
        self.checkpointer = Checkpointer(
            config.run_folder / "checkpoints",
            self.world.rank,
            self.world.layout.world_size,
            options,
            self.world.control_group,
            description,
        )

    def load(self, newest: int | None) -> int | None:
        """Go on from the checkpoint of step `newest` or an older sound one, and return its step; None: there
        is none, and the model is as the run begins."""
        found = self.checkpointer.load_newest(
            self.engine.pieces_to_load(),
            lambda manifest: list(
                tuning_problems(self.config.peft, self.preparation.base, manifest.description)
            ),
            newest,
        )
        if found is not None:
            self.engine.after_load(found.progress)
            return found.step
        self._begin()
        return None

    def _begin(self) -> None:
        """From `init_from`: a head, too, if one is wanted and there."""
        source = self.config.train.init_from
        if source is None or self.preparation.base is not None:
            return
        start = self.preparation.start
        place = source if start is None else start.path
        model, outputs = self.config.model, self.config.outputs
        has_head = self.agreement.decide(None, lambda _: outputs is not None and scores_texts(place))
        without = () if has_head else not_begun_from(model, outputs)
        begin_from(place, self.engine.weight_pieces(), self.agreement, vocabulary_tensors(model), without)
        self.engine.after_load({"step": 0, "optimizer_steps": 0})

    def save(self, step: int, progress: Mapping[str, JsonValue], kept: Sequence[int]) -> str:
        """Write the checkpoint of a step; returns when it is committed.

        Args:
            kept: steps that a transaction still needs.

        Raises:
            SaveFailed: the disk refuses.
        """
        found = self.engine.fingerprint()
        whole = {**progress, **self.engine.counters(), "step": self.engine.steps_done}
        whole[fingerprint.KEY] = found and found.as_json()
        self.checkpointer.save(step, self.engine.pieces_to_save(), whole, kept)
        self.checkpointer.wait()
        return str(self.config.run_folder / "checkpoints" / f"step-{step:08d}")

    def update(self, experiences: Sequence[Experience]) -> Figures:
        """One optimizer step over the experiences of all replicas."""
        result = self.engine.step(self.packed(experiences).batches)
        own = {"loss": result.loss, "grad_norm": result.grad_norm, "lr": result.lr, "tokens": result.tokens}
        return {**{name: float(value) for name, value in numbers_of(result.metrics).items()}, **own}

    def _asked(self, experiences: Sequence[Experience], tell: Tell) -> list[Floats] | None:
        packed = self.packed(experiences)
        told = self.engine.ask(packed.batches, tell)
        return packed.of_experiences(told) if self.speaks else None


class Actor(Trained):
    """The policy."""

    def __init__(self, config: Config, environment: RankEnvironment) -> None:
        tokenizer, rollout = config.tokenizer.path, config.rlhf.rollout
        assert tokenizer is not None
        self.policy = Policy(
            config.rlhf, rollout.temperature, rollout.importance_cap, config.rlhf.longest_answer
        )
        super().__init__(config, environment, CausalLM() if config.rlhf.takes_the_best else self.policy)
        stops = chat_encoder(config, tokenizer, config.train.sequence_length).stops
        self.writer = NativeRollout(self.engine, frozenset(stops))

    def generate(self, requests: Sequence[Request], options: RolloutSection) -> list[Written] | None:
        """An answer to each."""
        written = self.writer.generate(requests, options)
        return written if self.speaks else None

    def log_probabilities(self, experiences: Sequence[Experience]) -> list[Floats] | None:
        """[T] of each."""
        return self._asked(experiences, self._tell)

    def reference_log_probabilities(self, experiences: Sequence[Experience]) -> list[Floats] | None:
        """[T] of each, of the model without its adapter."""
        with peft_off(self.engine.chunks):
            return self._asked(experiences, self._tell)

    def _tell(self, chunk: LanguageModel, output: Tensor, batch: Batch) -> Tensor:
        temperature = self.config.rlhf.rollout.temperature
        return token_figures(chunk, output, batch, temperature).log_probabilities_BS

    def learn(self, experiences: Sequence[Experience], kl_coefficient: float) -> Figures:
        """As `update`, with the weight that the divergence has in the loss now."""
        self.policy.kl_coefficient = kl_coefficient
        return self.update(experiences)

    def open_stream(self) -> tuple[int, int]:
        """Begin to give the weights away as they stand; their version, and how many lots they are."""
        self._stream = buckets(self.engine)
        lots = dealt(weight_shapes(self.engine), self.engine.chunks[0].config.params_dtype, BUCKET_BYTES)
        return self.engine.steps_done, len(lots)

    def next_lot(self) -> Bucket | None:
        """The next lot, on the rank that speaks for all."""
        return next(self._stream)


class Critic(Trained):
    """What the rest of an answer will be worth, at each of its tokens."""

    def __init__(self, config: Config, environment: RankEnvironment) -> None:
        super().__init__(config, environment, Value(config.rlhf.update.value_clip))

    def values(self, experiences: Sequence[Experience]) -> list[Floats] | None:
        """[T] of each."""
        return self._asked(experiences, lambda _, output, batch: token_values(output, batch))


class FrozenReference(_OnRank):
    """The model that the actor started from."""

    def __init__(self, config: Config, environment: RankEnvironment) -> None:
        super().__init__(config, environment)
        agreement = Agreement(self.world.rank, self.world.layout.world_size, self.world.control_group)
        start = find_start(config, config.checkpoint, agreement)
        assert start is not None
        rests = config.rlhf.roles.reference.offload
        self.model = held_reference(config, self.world, start, rests)

    def reference_log_probabilities(self, experiences: Sequence[Experience]) -> list[Floats] | None:
        """[T] of each."""
        temperature = self.config.rlhf.rollout.temperature

        def tell(chunk: LanguageModel, output: Tensor, batch: Batch) -> Tensor:
            return token_figures(chunk, output, batch, temperature).log_probabilities_BS

        packed = self.packed(experiences)
        batches = [batch.to(self.world.device) for batch in packed.batches]
        with self.world.active(), self.model.at_work():
            told = ask(self.model.scheduled, self.world, batches, tell)
        return packed.of_experiences(told) if self.speaks else None


class Writing:
    """A copy of the actor that writes answers, whole on every rank."""

    def __init__(self, config: Config, environment: RankEnvironment) -> None:
        tokenizer = config.tokenizer.path
        assert tokenizer is not None
        use_cores(environment, config.cluster.threads, config.cluster.numa_binding)
        device = rank_device(environment.local_rank)
        stops = chat_encoder(config, tokenizer, config.train.sequence_length).stops
        self.engine = TransformersRollout(
            config.model,
            resolved_vocabulary_size(config),
            config.model.max_positions or config.train.sequence_length,
            DTYPES[config.train.precision],
            device,
            frozenset(stops),
        )
        self._taken: list[Bucket] = []
        self._rests = config.rlhf.roles.rollout.offload

    def described(self) -> dict[str, JsonValue]:
        return {"layout": {}, "device": "transformers"}

    def take(self, lot: Bucket) -> None:
        self._taken.append(lot)

    def load(self, version: int) -> None:
        """Write with the lots that were taken from now on.

        Raises:
            SyncFailed: something is missing, or is not what was sent; the old weights stay in use.
        """
        taken, self._taken = self._taken, []
        with self._awake():
            self.engine.load_weights(version, iter(taken))

    def generate(self, requests: Sequence[Request], options: RolloutSection) -> list[Written]:
        with self._awake():
            return self.engine.generate(requests, options)

    @contextmanager
    def _awake(self) -> Iterator[None]:
        self.engine.wake()
        yield
        if self._rests:
            self.engine.sleep()


class Rewarding:
    """A reward model, whose head tells what whole texts are worth."""

    def __init__(self, config: Config, environment: RankEnvironment) -> None:
        section = config.rlhf.roles.reward
        target = find_target(
            str(section.init_from),
            config.run.root,
            config.tokenizer.path,
            section.parallel.tensor,
            section.parallel.pipeline,
            scores=True,
        )
        use_cores(environment, config.cluster.threads, config.cluster.numa_binding)
        self.scorer = load_reward_model(target, environment)
        self.batch = config.rlhf.rollout.batch
        world = self.scorer.world
        self._resting = Resting(self.scorer.chunks, world.device) if section.offload else None
        self.speaks = speaks(world.layout, world.rank)

    def described(self) -> dict[str, JsonValue]:
        world = self.scorer.world
        return {"layout": dict(world.layout.describe()), "device": str(world.device)}

    def scores(self, texts: Sequence[Sequence[int]]) -> list[float] | None:
        """Of each text, at its last token."""
        found: list[float] = []
        with self._resting.at_work() if self._resting is not None else nullcontext():
            for start in range(0, len(texts), self.batch):
                found += self.scorer.scores(texts[start : start + self.batch]).tolist()
        return found if self.speaks else None


def open_actor(environment: RankEnvironment, config: dict[str, Any]) -> Actor:
    return Actor(role_config(Config.model_validate(config), "actor"), environment)


def open_critic(environment: RankEnvironment, config: dict[str, Any]) -> Critic:
    return Critic(role_config(Config.model_validate(config), "critic"), environment)


def open_reference(environment: RankEnvironment, config: dict[str, Any]) -> FrozenReference:
    return FrozenReference(role_config(Config.model_validate(config), "reference"), environment)


def open_reward(environment: RankEnvironment, config: dict[str, Any]) -> Rewarding:
    return Rewarding(role_config(Config.model_validate(config), "reward"), environment)


def open_rollout(environment: RankEnvironment, config: dict[str, Any]) -> Writing:
    return Writing(role_config(Config.model_validate(config), "rollout"), environment)
