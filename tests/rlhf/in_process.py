"""A loop of reinforcement learning in one process: groups whose models are one number, and a world of prompts
that are numbers.

A model is the digest of all that it has learned, in order: two runs that end with the same number have
learned the same, each thing once.
"""

import hashlib
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llmscale.config.rlhf_pools import RolloutSection
from llmscale.config.schema import Config, ParallelSection
from llmscale.data.prompt_records import Prompt
from llmscale.parallel.layout import Layout
from llmscale.rlhf.answers import Answer, Author, single_answers
from llmscale.rlhf.controller import Controller
from llmscale.rlhf.experience import Experience, Floats
from llmscale.rlhf.models import Models
from llmscale.rlhf.replay import answers_from_bytes, answers_to_bytes
from llmscale.rlhf.rewards.reward import Sample, Scored
from llmscale.rlhf.rollout.engine import Request, Written
from llmscale.rlhf.state import State
from llmscale.rlhf.workers.lost import WorkerLost

END = 1


@dataclass
class Done:
    """A call that is done as soon as it is made."""

    found: list[Any]

    @property
    def references(self) -> list[Any]:
        return self.found

    def results(self, seconds: float | None = None) -> list[Any]:
        return self.found


@dataclass
class LocalGroup:
    """A role of one rank, in this process."""

    role: Any
    layout: Layout = field(default_factory=lambda: Layout.of(ParallelSection(), 1))

    def submit(self, method: str, samples: Sequence[Any], *shared: Any, costs: Any = None) -> Done:
        return Done(list(getattr(self.role, method)(list(samples), *shared)))

    def give(self, method: str, samples: Sequence[Any], *shared: Any, costs: Any = None) -> Done:
        return Done([getattr(self.role, method)(list(samples), *shared)])

    def tell(self, method: str, *arguments: Any) -> Done:
        return Done([getattr(self.role, method)(*arguments)])


def digest(*parts: Any) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:6], "little")


def write(weights: int, version: int, request: Request, options: RolloutSection) -> Written:
    chance = random.Random(digest(weights, request.seed, options.temperature, tuple(request.tokens)))
    tokens = [chance.randrange(2, 9) for _ in range(chance.randint(1, request.max_new_tokens))]
    finished = len(tokens) < request.max_new_tokens
    tokens += [END] if finished else []
    return Written(tokens, [-chance.random() for _ in tokens], finished, version)


@dataclass
class ToyActor:
    """Its weights are all that it has learned."""

    weights: int = 7
    updates: int = 0
    learned: list[list[tuple[int, ...]]] = field(default_factory=list)
    """Of each update the texts it has learned from."""
    began: threading.Event = field(default_factory=threading.Event)
    """Set when an update begins."""

    def generate(self, requests: Sequence[Request], options: RolloutSection) -> list[Written]:
        return [write(self.weights, self.updates, request, options) for request in requests]

    def log_probabilities(self, experiences: Sequence[Experience]) -> list[Floats]:
        return [self._told(one, self.weights) for one in experiences]

    def reference_log_probabilities(self, experiences: Sequence[Experience]) -> list[Floats]:
        return [self._told(one, 7) for one in experiences]

    def _told(self, one: Experience, weights: int) -> Floats:
        told = [-(digest(weights, int(token)) % 1000) / 1000 for token in one.tokens_T]
        return np.array(told, np.float32)

    def learn(self, experiences: Sequence[Experience], kl_coefficient: float) -> dict[str, float]:
        self.began.set()
        everything = [
            (
                one.tokens_T.tolist(),
                one.learned_T.tolist(),
                one.version,
                {name: values.tolist() for name, values in sorted(one.signals.items())},
            )
            for one in experiences
        ]
        self.weights = digest(self.weights, everything, kl_coefficient)
        self.updates += 1
        self.learned.append([tuple(one.tokens_T.tolist()) for one in experiences])
        return {"loss": self.weights % 97 / 97, "grad_norm": 1.0, "lr": 0.1, "ratio": 1.0, "rollout_gap": 0.3}

    def open_stream(self) -> tuple[int, int]:
        return self.updates, 1

    def next_lot(self) -> int:
        return self.weights


@dataclass
class ToyWriter:
    """A copy of the actor. Whoever sets `before` is asked before each rollout."""

    weights: int | None = None
    version: int = -1
    before: Callable[[], None] = lambda: None
    taken: list[int] = field(default_factory=list)
    given: int = 0
    """How often weights have come."""

    def take(self, lot: int) -> None:
        self.taken.append(lot)

    def load(self, version: int) -> None:
        (self.weights,), self.taken, self.version = self.taken, [], version
        self.given += 1

    def generate(self, requests: Sequence[Request], options: RolloutSection) -> list[Written]:
        self.before()
        if self.weights is None:
            raise RuntimeError("no weights have come yet")
        return [write(self.weights, self.version, request, options) for request in requests]


class ToyRewards:
    """The share of even tokens in the text, which is the tokens."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []

    def score(self, samples: Sequence[Sample]) -> list[Scored]:
        self.samples += samples
        return [self._one([int(word) for word in sample.completion.split()]) for sample in samples]

    def _one(self, tokens: Sequence[int]) -> Scored:
        if tokens[:1] == [8]:
            return Scored(None, "it begins with 8")
        value = sum(token % 2 == 0 for token in tokens) / max(1, len(tokens))
        return Scored(value, None, {"even": value})


class NumberedPrompts:
    """Prompt n is the token 10 + n."""

    def __init__(self, count: int = 10**6) -> None:
        self.prompts = count

    def at(self, position: int, count: int) -> list[Prompt]:
        return [
            Prompt(f"{number}", (10 + number, 9), f"line {number + 1}", {"number": number})
            for number in range(position, min(position + count, self.prompts))
        ]


def decode(tokens: Sequence[int]) -> str:
    return " ".join(str(token) for token in tokens if token != END)


def config_of(steps: int = 6, **rlhf: Any) -> Config:
    rollout = {"prompts": 3, "answers": 2, "max_new_tokens": 5} | rlhf.pop("rollout", {})
    tree = {"algorithm": "grpo", "kl": {"target": 2.0}, "update": {"minibatches": 2}} | rlhf
    return Config.model_validate(
        {
            "task": "rlhf",
            "train": {"steps": steps, "sequence_length": 64},
            "rlhf": {**tree, "rollout": rollout},
        }
    )


@dataclass
class Loop:
    """A run, and what it goes on from."""

    config: Config
    actor: ToyActor
    writer: ToyWriter | None
    controller: Controller

    @classmethod
    def begin(
        cls,
        config: Config,
        own_writer: bool = False,
        actor: ToyActor | None = None,
        state: State | None = None,
        waiting: Sequence[Answer] = (),
        author: Author = single_answers,
        prompts: Any = None,
    ) -> "Loop":
        actor, writer = actor or ToyActor(), ToyWriter() if own_writer else None
        groups: dict[str, Any] = {"actor": LocalGroup(actor), "writer": writer and LocalGroup(writer)}
        rewards: Any = ToyRewards()
        controller = Controller(
            config,
            Models(**groups),
            prompts or NumberedPrompts(),
            rewards,
            decode,
            state or State(),
            author,
            waiting,
        )
        return cls(config, actor, writer, controller)

    def steps(self, count: int) -> list[dict[str, float]]:
        """Their figures, without times."""
        found = [self.controller.learn(self.controller.gather()).figures for _ in range(count)]
        return [
            {name: value for name, value in figures.items() if not name.startswith("seconds_")}
            for figures in found
        ]

    def stopped_and_begun_again(self, config: Config | None = None) -> "Loop":
        """In a process that knows no more than what was saved."""
        waiting = self.controller.waiting()
        stored = answers_to_bytes(waiting) if waiting else None
        state = State.from_json(self.controller.state.as_json())
        actor = ToyActor(self.actor.weights, self.actor.updates, list(self.actor.learned))
        restored = [] if stored is None else answers_from_bytes(stored)
        return Loop.begin(config or self.config, self.writer is not None, actor, state, restored)

    def prompts_learned(self) -> list[int]:
        """By number, in the order of the updates' steps."""
        return [text[0] - 10 for update in self.actor.learned for text in update]


def lost(role: str = "rollout") -> WorkerLost:
    return WorkerLost("writers", [role], 0, "here", "has ended")
