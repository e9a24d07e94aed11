"""The loop of reinforcement learning: prompts, answers, rewards, what is known of both, a lesson, and steps
of the models that learn. Runs in the driver; the models are groups of workers.

Where it stands is one number, the prompts that were asked; all that is drawn depends on the seed, that number
and nothing that ran before.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from statistics import mean
from typing import Any

import numpy as np
from pydantic import JsonValue

from llmscale.config.rlhf_pools import RolloutSection
from llmscale.config.schema import Config
from llmscale.data.prompts import Prompt, Prompts
from llmscale.objectives.rl.adaptive_kl import KlCoefficient
from llmscale.objectives.rl.signals import OLD, REFERENCE, ROLLOUT, VALUES
from llmscale.parallel.rng import derived_seed
from llmscale.rlhf.experience import Experience
from llmscale.rlhf.group import Group
from llmscale.rlhf.handover import hand_over
from llmscale.rlhf.learning import lesson, minibatches
from llmscale.rlhf.rewards.reward import Sample
from llmscale.rlhf.rewards.weighted import Rewards
from llmscale.rlhf.rollout.engine import Request, Written
from llmscale.runtime.final import FinalFailure

Figures = dict[str, float]


class StepFailed(FinalFailure):
    """What a step has found cannot be right; trying again would not help."""


@dataclass(frozen=True)
class Models:
    """The run's models, as groups."""

    actor: Group
    critic: Group | None = None
    reference: Group | None = None
    """None: there is no divergence to be told, or the actor tells it with its adapter off."""
    writer: Group | None = None
    """Writes the answers; None: the actor does."""


@dataclass
class State:
    """Where the run stands, beside its models."""

    step: int = 0
    prompts: int = 0
    """Asked so far."""
    tokens: int = 0
    """Learned from so far."""
    kl: dict[str, JsonValue] = field(default_factory=dict)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "State":
        return cls(stored["step"], stored["prompts"], stored["tokens"], dict(stored["kl"]))

    def as_json(self) -> dict[str, JsonValue]:
        return {"step": self.step, "prompts": self.prompts, "tokens": self.tokens, "kl": dict(self.kl)}


@dataclass(frozen=True)
class Gathered:
    """What a step is made of: prompts, the answers to them, and all that is known of these."""

    prompts: list[Prompt]
    experiences: list[Experience]
    texts: list[str]


@dataclass(frozen=True)
class Outcome:
    """What a step was."""

    figures: Figures
    experiences: list[Experience]
    texts: list[str]
    prompts: list[Prompt]


class Controller:
    """
    Args:
        prompts: of the training.
        rewards: what answers are worth.
        decode: tokens of an answer → its text, without what ends it.
        seconds: how long one call of a group may take; None: for ever.
    """

    def __init__(
        self,
        config: Config,
        models: Models,
        prompts: Prompts,
        rewards: Rewards,
        decode: Any,
        state: State,
        seconds: float | None = None,
    ) -> None:
        self.config = config
        self.options = config.rlhf
        self.models = models
        self.prompts = prompts
        self.rewards = rewards
        self.decode = decode
        self.state = state
        self.seconds = seconds
        self.kl = (
            KlCoefficient.from_json(self.options.kl, state.kl)
            if state.kl
            else KlCoefficient.first(self.options.kl)
        )
        self.phases: Figures = {}
        self._handed_over: int | None = None
        """Step of the weights that the writers have."""

    def gather(self) -> Gathered:
        """The answers of the next step, and all that is known of them. It can be repeated: it depends on the
        state and the weights alone, and changes neither."""
        self.phases = {}
        asked = self.prompts.at(self.state.prompts, self.options.rollout.prompts)
        with self._phase("rollout"):
            experiences = self._answers(asked, self.state.prompts, self.options.rollout)
        texts = self._texts(experiences)
        with self._phase("rewards"):
            experiences = self._rewarded(asked, experiences, texts)
        with self._phase("knowing"):
            experiences = self._knowing(experiences)
        return Gathered(asked, experiences, texts)

    def learn(self, gathered: Gathered) -> Outcome:
        """The step itself: models and state are those after it."""
        taught = lesson(gathered.experiences, self.options, self.kl.value)
        with self._phase("learning"):
            figures = self._learn(taught.experiences)
        figures |= self._told(gathered.experiences, taught.divergence)
        self._check(figures)
        self.state.step += 1
        self.state.prompts += len(gathered.prompts)
        self.state.tokens += sum(one.answer_length for one in taught.experiences)
        if taught.divergence is not None:
            self.kl = self.kl.after(taught.divergence, len(gathered.experiences))
        self.state.kl = self.kl.as_json()
        return Outcome(
            figures | {f"seconds_{name}": spent for name, spent in self.phases.items()},
            gathered.experiences,
            gathered.texts,
            gathered.prompts,
        )

    def forget_writers(self) -> None:
        """Those that write with weights of their own have been started again, and have none."""
        self._handed_over = None

    def validate(self, prompts: Sequence[Prompt]) -> Outcome:
        """One answer to each of these, from which nothing is learned."""
        options = self.options.rollout.model_copy(
            update={"temperature": self.options.validation.temperature, "answers": 1}
        )
        experiences = self._answers(prompts, 0, options)
        texts = self._texts(experiences)
        experiences = self._rewarded(prompts, experiences, texts)
        return Outcome(self._told(experiences, None), experiences, texts, list(prompts))

    def _texts(self, experiences: Sequence[Experience]) -> list[str]:
        return [self.decode(one.tokens_T[one.learned_T].tolist()) for one in experiences]

    def _answers(self, asked: Sequence[Prompt], first: int, options: RolloutSection) -> list[Experience]:
        """
        Args:
            first: number of the first prompt, of which draws depend.
        """
        requests: list[Request] = []
        for number, prompt in enumerate(asked, first):
            for place in range(options.answers):
                seed = derived_seed(self.config.train.seed, "answer", number, place)
                requests.append(Request(prompt.tokens, seed, options.max_new_tokens))
        writer = self._writer()
        written: list[Written] = writer.submit("generate", requests, options).results(self.seconds)
        return [
            self._experience(request, answer, turn // options.answers, turn % options.answers)
            for turn, (request, answer) in enumerate(zip(requests, written, strict=True))
        ]

    def _writer(self) -> Group:
        """The models that write, with the weights of now."""
        models = self.models
        if models.writer is None:
            return models.actor
        if self._handed_over != self.state.step:
            hand_over(models.actor, models.writer, self.seconds)
            self._handed_over = self.state.step
        return models.writer

    def _experience(self, request: Request, answer: Written, prompt: int, place: int) -> Experience:
        before = len(request.tokens)
        tokens = np.array([*request.tokens, *answer.tokens], np.int32)
        told = np.concatenate((np.zeros(before), answer.log_probabilities)).astype(np.float32)
        learned = np.arange(len(tokens)) >= before
        return Experience(tokens, learned, prompt, place, answer.version, answer.finished, {ROLLOUT: told})

    def _rewarded(
        self, asked: Sequence[Prompt], experiences: Sequence[Experience], texts: Sequence[str]
    ) -> list[Experience]:
        samples: list[Sample] = []
        for experience, text in zip(experiences, texts, strict=True):
            prompt = asked[experience.prompt]
            samples.append(
                Sample(
                    prompt.said,
                    text,
                    experience.tokens_T.tolist(),
                    len(prompt.tokens),
                    experience.finished,
                    prompt.record,
                    prompt.fields,
                )
            )
        scored = self.rewards.score(samples)
        return [
            replace(one, reward=found.value, rewards=dict(found.parts))
            for one, found in zip(experiences, scored, strict=True)
        ]

    def _knowing(self, experiences: list[Experience]) -> list[Experience]:
        """What the models say of the answers; those of different pools at the same time."""
        models, lengths = self.models, [len(one.tokens_T) for one in experiences]
        pending: dict[str, Any] = {}
        if self._needs_old:
            pending[OLD] = models.actor.submit("log_probabilities", experiences, costs=lengths)
        if self.options.has_kl:
            teller, method = models.reference or models.actor, "reference_log_probabilities"
            pending[REFERENCE] = teller.submit(method, experiences, costs=lengths)
        if models.critic is not None:
            pending[VALUES] = models.critic.submit("values", experiences, costs=lengths)
        for name, calls in pending.items():
            told = calls.results(self.seconds)
            experiences = [one.knowing(**{name: found}) for one, found in zip(experiences, told, strict=True)]
        return experiences

    @property
    def _needs_old(self) -> bool:
        """The first of several steps on a rollout, and rewards that a divergence is taken from, need the
        log-probabilities from before; else the actor's own while it learns are those."""
        update = self.options.update
        return update.epochs * update.minibatches > 1 or self.options.has_kl

    def _learn(self, experiences: Sequence[Experience]) -> Figures:
        """All optimizer steps on these experiences; means of their figures, and the first step's ratio."""
        update, found = self.options.update, list[Figures]()
        for epoch in range(update.epochs):
            seed = derived_seed(self.config.train.seed, "minibatches", self.state.step, epoch)
            for places in minibatches(len(experiences), update.minibatches, seed):
                found.append(self._update([experiences[place] for place in places]))
        names = dict.fromkeys(name for one in found for name in one)
        means = {name: mean(one[name] for one in found if name in one) for name in names}
        return means | {
            "first_ratio": found[0].get("ratio", 1.0),
            "first_kl_old": found[0].get("kl_old", 0.0),
        }

    def _update(self, experiences: Sequence[Experience]) -> Figures:
        lengths = [len(one.tokens_T) for one in experiences]
        critic = self.models.critic
        pending = critic.give("update", experiences, costs=lengths) if critic is not None else None
        figures: Figures = self.models.actor.give("learn", experiences, self.kl.value, costs=lengths).results(
            self.seconds
        )[0]
        if pending is not None:
            figures = figures | {
                f"critic_{name}": value for name, value in pending.results(self.seconds)[0].items()
            }
        return figures

    def _told(self, experiences: Sequence[Experience], divergence: float | None) -> Figures:
        """Figures of the answers themselves."""
        rewards = [one.reward for one in experiences if one.reward is not None]
        found: Figures = {
            "reward_mean": float(np.mean(rewards)) if rewards else 0.0,
            "reward_std": float(np.std(rewards)) if rewards else 0.0,
            "answer_tokens": mean(one.answer_length for one in experiences),
            "truncated_share": mean(not one.finished for one in experiences),
            "unrewarded_share": mean(one.reward is None for one in experiences),
        }
        for name in sorted({name for one in experiences for name in one.rewards}):
            found[f"reward_{name}"] = mean(one.rewards[name] for one in experiences if name in one.rewards)
        if divergence is not None:
            found |= {"kl_answer": divergence, "kl_coefficient": self.kl.value}
        return found

    def _check(self, figures: Mapping[str, float]) -> None:
        """
        Raises:
            StepFailed: the weights that answered are not those that learn.
        """
        gap, largest = figures.get("rollout_gap", 0.0), self.options.rollout.largest_gap
        if largest and gap > largest:
            raise StepFailed(
                f"log-probabilities of the rollout are {gap:.4f} nats a token from the trainer's, more than "
                f"rlhf.rollout.largest_gap = {largest}: the weights that answered are not those that learn"
            )

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.phases[name] = self.phases.get(name, 0.0) + time.perf_counter() - began
