"""The loop of reinforcement learning: prompts, answers, rewards, what is known of both, a lesson, and steps
of the models that learn. Runs in the driver; the models are groups of workers.

Where it stands is one number, the prompts whose answers were learned from; all that is drawn depends on the
seed, that number and nothing that ran before.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from statistics import mean
from typing import Protocol

from llmscale.config.rlhf_pools import RolloutSection
from llmscale.config.schema import Config
from llmscale.data.prompt_records import Prompt
from llmscale.objectives.rl.adaptive_kl import KlCoefficient
from llmscale.parallel.rng import derived_seed
from llmscale.rlhf.ahead import Ahead
from llmscale.rlhf.answers import Answer, Author, Rollout, single_answers
from llmscale.rlhf.experience import Experience
from llmscale.rlhf.judging import Decode, judged, text_of
from llmscale.rlhf.knowing import knowing
from llmscale.rlhf.learning import lesson
from llmscale.rlhf.models import Models
from llmscale.rlhf.rewards.weighted import Rewards
from llmscale.rlhf.rollout.handover import Writers
from llmscale.rlhf.state import State
from llmscale.rlhf.told import Figures, told_of
from llmscale.rlhf.updates import update_models
from llmscale.rlhf.workers.lost import WorkerLost
from llmscale.runtime.final import FinalFailure
from llmscale.runtime.hooks import Part


class StepFailed(FinalFailure):
    """What a step has found cannot be right; trying again would not help."""


class Asked(Protocol):
    """Prompts in an order, by how many were asked before."""

    def at(self, position: int, count: int) -> list[Prompt]: ...


@dataclass(frozen=True)
class Gathered:
    """What a step is made of: prompts, the answers to them, and all that is known of these."""

    prompts: list[Prompt]
    experiences: list[Experience]
    texts: list[str]
    """Of the answers."""


@dataclass(frozen=True)
class Outcome:
    """What a step was, or a validation."""

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
        author: how answers come about.
        waiting: answers that the run has written and not learned from when it was saved.
        on_part: hears of each part of a step as it begins.
    """

    def __init__(
        self,
        config: Config,
        models: Models,
        prompts: Asked,
        rewards: Rewards,
        decode: Decode,
        state: State,
        author: Author = single_answers,
        waiting: Sequence[Answer] = (),
        on_part: Callable[[Part], None] | None = None,
    ) -> None:
        self.config = config
        self.options = config.rlhf
        self.models = models
        self.prompts = prompts
        self.rewards = rewards
        self.decode = decode
        self.state = state
        self.author = author
        self.on_part = on_part
        self.kl = (
            KlCoefficient.from_json(self.options.kl, state.kl)
            if state.kl
            else KlCoefficient.first(self.options.kl)
        )
        self.phases: Figures = {}
        self._writers = Writers(models)
        self._written: dict[int, list[Answer]] = {state.prompts: list(waiting)} if waiting else {}
        """Answers that nothing was learned from, by the number of their first prompt."""
        self._ahead: tuple[int, Ahead[list[Answer]]] | None = None
        """Those that are being written."""

    def gather(self) -> Gathered:
        """The answers of the next step, and all that is known of them. It can be repeated: it depends on the
        state and the weights alone, and changes neither.

        With `rlhf.async_steps` the answers of the step after begin to be written with the weights of now.

        Raises:
            WorkerLost, WorkerFailed: see `Calls.results`. RewardFailed: too many answers have no reward.
        """
        self.phases = {}
        with self._phase("rollout"):
            answers = self._answers_from(self.state.prompts)
        asked = self.prompts.at(self.state.prompts, _prompts_of(answers))
        with self._phase("rewards"):
            experiences = judged(answers, asked, self.rewards, self.decode)
        with self._phase("knowing"):
            experiences = knowing(experiences, self.models, self.options)
        # A run that stops early writes ahead as one that does not.
        if self.options.async_steps and self.state.step + 1 < self.config.train.steps:
            with self._phase("rollout"):
                self._write_ahead(self.state.prompts + len(asked))
        return Gathered(asked, experiences, self._texts(experiences))

    def learn(self, gathered: Gathered) -> Outcome:
        """The step itself: models and state are those after it.

        Raises:
            WorkerLost, WorkerFailed: see `Calls.results`. StepFailed: it cannot be right.
        """
        experiences, step = gathered.experiences, self.state.step
        taught = lesson(experiences, self.options, self.kl.value)
        figures: Figures = {}
        if self.options.learns:
            with self._phase("learning"):
                seed = derived_seed(self.config.train.seed, "minibatches", step)
                figures = update_models(
                    self.models, taught.experiences, self.options.update, self.kl.value, seed
                )
        staleness = mean(step - one.version for one in experiences) if self.options.learns else 0
        self._check(figures, staleness)
        figures |= told_of(experiences)
        if self.options.learns:
            figures["staleness"] = staleness
        else:
            figures |= {"loss": -figures.get("reward_best", 0.0), "grad_norm": 0.0, "lr": 0.0}
        if taught.divergence is not None:
            figures |= {"kl_answer": taught.divergence, "kl_coefficient": self.kl.value}
            self.kl = self.kl.after(taught.divergence, len(experiences))
        self._written.pop(self.state.prompts)
        self.state.step += 1
        self.state.prompts += len(gathered.prompts)
        self.state.asked = max(self.state.asked, self.state.prompts)
        self.state.tokens += sum(one.answer_length for one in taught.experiences)
        self.state.kl = self.kl.as_json()
        seconds = {f"seconds_{name}": spent for name, spent in self.phases.items()}
        return Outcome(figures | seconds, experiences, gathered.texts, gathered.prompts)

    def validate(self, prompts: Sequence[Prompt]) -> Outcome:
        """One answer to each of these (best_of_n: as many as of a step), from which nothing is learned. It
        can be repeated, as `gather`."""
        self.settle()
        options = self.options.rollout
        if self.options.learns:
            once = {"temperature": self.options.validation.temperature, "answers": 1}
            options = options.model_copy(update=once)
        answers = self._write(prompts, 0, options)
        experiences = judged(answers, prompts, self.rewards, self.decode)
        return Outcome(told_of(experiences), experiences, self._texts(experiences), list(prompts))

    def settle(self) -> None:
        """Wait until nothing is being written.

        Raises:
            WorkerLost, WorkerFailed: see `Calls.results`; what was not written will be, anew.
        """
        under_way, self._ahead = self._ahead, None
        if under_way is not None:
            first, ahead = under_way
            self._written[first] = ahead.result()

    def waiting(self) -> list[Answer]:
        """Answers that are written and wait to be learned from; `state` counts their prompts as asked."""
        # Who asks for these answers next has them written again, and is told of the loss.
        with suppress(WorkerLost):
            self.settle()
        found = [answer for first in sorted(self._written) for answer in self._written[first]]
        self.state.asked = self.state.prompts + _prompts_of(found)
        return found

    def forget_writers(self) -> None:
        """Those that write with weights of their own have been started again, and have none."""
        self._writers.forget()

    def _answers_from(self, first: int) -> list[Answer]:
        """To the prompts of a step, the first of which has this number; written if they are not there."""
        self.settle()
        if first not in self._written:
            prompts = self.prompts.at(first, self.options.rollout.prompts)
            self._written[first] = self._write(prompts, first, self.options.rollout)
        return self._written[first]

    def _write_ahead(self, first: int) -> None:
        """Have such answers written from now on, by the weights of now."""
        if first in self._written:
            return
        prompts = self.prompts.at(first, self.options.rollout.prompts)
        rollout = self._rollout(prompts, first, self.options.rollout)
        self._ahead = (first, Ahead(lambda: self.author(rollout, self._writers.write)))

    def _write(self, prompts: Sequence[Prompt], first: int, options: RolloutSection) -> list[Answer]:
        return self.author(self._rollout(prompts, first, options), self._writers.write)

    def _rollout(self, prompts: Sequence[Prompt], first: int, options: RolloutSection) -> Rollout:
        """By the weights of now."""
        step = self.state.step if self.options.learns else 0
        self._writers.take_weights(step)
        return Rollout(prompts, first, options, self.config.train.seed, step)

    def _texts(self, experiences: Sequence[Experience]) -> list[str]:
        return [text_of(one, self.decode) for one in experiences]

    def _check(self, figures: Mapping[str, float], staleness: float) -> None:
        """
        Raises:
            StepFailed: the weights that answered are not those that learn.
        """
        gap, largest = figures.get("rollout_gap", 0.0), self.options.rollout.largest_gap
        if largest and gap > largest and not staleness:
            raise StepFailed(
                f"log-probabilities of the rollout are {gap:.4f} nats a token from the trainer's, more than "
                f"rlhf.rollout.largest_gap = {largest}: the weights that answered are not those that learn"
            )

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        if self.on_part is not None:
            answers = self.options.rollout.prompts * self.options.rollout.answers
            self.on_part(Part(self.state.step + 1, name, answers))
        yield
        self.phases[name] = self.phases.get(name, 0.0) + time.perf_counter() - began


def _prompts_of(answers: Sequence[Answer]) -> int:
    return len({one.experience.prompt for one in answers})
