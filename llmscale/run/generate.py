"""Generation, composed: a target's weights in this process, or in ranks that it talks to through pipes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Protocol

from llmscale.checkpoint.errors import CheckpointError
from llmscale.config.problems import InputError
from llmscale.engine.generate import Generator, OnTokens
from llmscale.engine.sampling import SamplingOptions
from llmscale.parallel.distributed import disconnect
from llmscale.parallel.environment import RankEnvironment
from llmscale.run.loaded_model import load_model
from llmscale.run.rank_team import RankTeam, answer, answer_errors
from llmscale.run.target import Target


class Writer(Protocol):
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        options: SamplingOptions,
        on_tokens: OnTokens | None = None,
    ) -> list[list[int]]:
        """As `Generator.generate`."""
        ...

    def next_log_probabilities(
        self, prompts: Sequence[Sequence[int]], tokens: Sequence[int]
    ) -> list[list[float]]:
        """As `Generator.next_log_probabilities`."""
        ...


@contextmanager
def open_writer(target: Target) -> Iterator[Writer]:
    """The target's model, ready to write: in this process where one rank is enough.

    Raises:
        InputError: the checkpoint does not fit the model. CheckpointError: it is damaged.
        RanksFailed: a rank has ended.
    """
    if target.ranks == 1:
        try:
            yield load_generator(target, RankEnvironment())
        finally:
            disconnect()
        return
    with WritingTeam.opened(target.ranks, serve, target) as team:
        team.expect("ready")
        yield team


def load_generator(target: Target, environment: RankEnvironment) -> "TextGenerator":
    """This rank's part of the model, with its weights."""
    chunks, world = load_model(
        target.config, target.vocabulary_size, environment, target.weights, target.base
    )
    return TextGenerator(Generator(chunks, world), target.config.peft.placeholders)


@dataclass(frozen=True)
class TextGenerator:
    """Has the model's virtual tokens stand before each prompt."""

    generator: Generator
    placeholders: int

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        options: SamplingOptions,
        on_tokens: OnTokens | None = None,
    ) -> list[list[int]]:
        """As `Generator.generate`."""
        return self.generator.generate(self._behind_placeholders(prompts), options, on_tokens)

    def next_log_probabilities(
        self, prompts: Sequence[Sequence[int]], tokens: Sequence[int]
    ) -> list[list[float]]:
        """As `Generator.next_log_probabilities`."""
        return self.generator.next_log_probabilities(self._behind_placeholders(prompts), tokens)

    def _behind_placeholders(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        before = [-1 - place for place in range(self.placeholders)]
        return [[*before, *prompt] for prompt in prompts]


class WritingTeam(RankTeam):
    """Ranks that hold the model together. Each gets its orders through a pipe; rank 0 answers."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        options: SamplingOptions,
        on_tokens: OnTokens | None = None,
    ) -> list[list[int]]:
        self.order((prompts, options))
        return self.expect("texts", on_tokens)

    def next_log_probabilities(
        self, prompts: Sequence[Sequence[int]], tokens: Sequence[int]
    ) -> list[list[float]]:
        """As `Generator.next_log_probabilities`."""
        self.order((prompts, tuple(tokens)))
        return self.expect("log-probabilities")


def serve(target: Target, orders: Connection) -> int:
    """One rank of a team: load, then write what is ordered until the pipe closes."""
    try:
        generator = load_generator(target, RankEnvironment.from_variables())
    except (InputError, CheckpointError) as error:
        return answer_errors(orders, error)
    answer(orders, "ready", None)
    while True:
        try:
            prompts, wanted = orders.recv()
        except EOFError:
            return 0
        if not isinstance(wanted, SamplingOptions):
            answer(orders, "log-probabilities", generator.next_log_probabilities(prompts, wanted))
            continue
        texts = generator.generate(prompts, wanted, lambda tokens: answer(orders, "tokens", tokens))
        answer(orders, "texts", texts)
