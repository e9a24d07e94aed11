"""Conversations of several turns with environments, with the exact tokens of every turn.

What a model wrote stays the tokens that it wrote, and is never made of text again. What an environment says
goes behind them as the chat template writes it, and is not learned.

An environment is a class of yours, one object a conversation:

    class Mine:
        def reset(self, record) -> list of messages
        def step(self, completion) -> (list of messages, reward, done)
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Protocol

from llmscale.config.problems import Problem
from llmscale.config.rlhf_environment import EnvironmentSection
from llmscale.data.chat.conversation import BadRecord, Message
from llmscale.data.chat.encode import ChatEncoder
from llmscale.data.prompt_records import Prompt
from llmscale.rlhf.conversations.continuation import Continuation
from llmscale.rlhf.rewards.limited import LimitedProcess, WorkerFailed

HOST = "llmscale.rlhf.conversations.environment_host:host"


class Written(Protocol):
    """One answer of the model, as a rollout engine gives it."""

    @property
    def tokens(self) -> Sequence[int]:
        """With the token that ends it, where it has ended."""
        ...

    @property
    def log_probabilities(self) -> Sequence[float]:
        """Of each, when it was drawn."""
        ...

    @property
    def finished(self) -> bool:
        """It ended by itself."""
        ...


@dataclass(frozen=True)
class Answered:
    """A turn of the model in an episode: the tokens `first:stop`, and what they brought."""

    first: int
    stop: int
    reward: float
    finished: bool


@dataclass
class Episode:
    """One conversation, as far as it has come."""

    number: int
    record: str
    """Where its record stands, for messages."""
    messages: list[Message] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    learned: list[bool] = field(default_factory=list)
    """One a token: the model wrote it."""
    log_probabilities: list[float] = field(default_factory=list)
    """One a token; 0 where the model did not write it."""
    prompt_tokens: int = 0
    turns: list[Answered] = field(default_factory=list)
    is_done: bool = False
    is_cut: bool = False
    """It ended for want of tokens or turns, and not because the environment was done."""
    error: str | None = None
    """Nobody knows what it is worth, and nothing must be learned of it."""

    @property
    def reward(self) -> float:
        """Of all turns."""
        return sum(turn.reward for turn in self.turns)

    def append(self, tokens: Sequence[int], log_probabilities: Sequence[float] | None = None) -> None:
        """
        Args:
            log_probabilities: of tokens that the model wrote; None: it did not.
        """
        self.tokens += map(int, tokens)
        self.learned += [log_probabilities is not None] * len(tokens)
        self.log_probabilities += [0.0] * len(tokens) if log_probabilities is None else log_probabilities

    def fail(self, why: str) -> None:
        self.is_done, self.error = True, f"{self.record}: {why}"


Generate = Callable[[Sequence[Episode]], Sequence[Written]]
"""Conversations -> what the model says next in each."""


def record_of(prompt: Prompt) -> tuple[str, dict[str, Any]]:
    """What `reset` is given of a prompt: its other fields, and in `messages` what it says."""
    said = prompt.said
    messages = [{"role": "user", "content": said}] if isinstance(said, str) else [*said]
    return prompt.record, {**prompt.fields, "messages": messages}


class MultiTurn:
    """Any number of conversations at a time, of several rollouts too: all that is known of one is in its
    `Episode`, so that they may be at different turns.

    Args:
        encoder: with the template of the conversations.
        longest: tokens of a conversation, at most.

    Raises:
        InputError: the template cannot be continued.
    """

    def __init__(self, section: EnvironmentSection, encoder: ChatEncoder, longest: int) -> None:
        self._section = section
        self._encoder = encoder
        self._longest = longest
        self._continuation = Continuation(encoder)
        self._workers = [LimitedProcess(HOST, "plain", section.worker) for _ in range(section.worker.count)]
        self._numbers = count()

    def close(self) -> None:
        for worker in self._workers:
            worker.close()

    def begin(self, records: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Episode]:
        """A conversation for each record (where it stands, and its fields; see `record_of`), up to the first
        question."""
        episodes = [Episode(next(self._numbers), record) for record, _ in records]
        orders = [
            {"do": "reset", "number": episode.number, "record": dict(fields)}
            for episode, (_, fields) in zip(episodes, records)
        ]
        for episode, outcome in self._ask(episodes, orders):
            self._ask_first(episode, outcome["messages"])
        return episodes

    def advance(self, episodes: Sequence[Episode], written: Sequence[Written]) -> None:
        """The model has written an answer in each; the environment hears it, and says what follows.

        Raises:
            ValueError: one of them is done already, or a token has no log-probability.
        """
        completions: list[str] = []
        for episode, answer in zip(episodes, written, strict=True):
            if episode.is_done:
                raise ValueError(f"the conversation of {episode.record} is done")
            if len(answer.tokens) != len(answer.log_probabilities):
                raise ValueError(f"the answer to {episode.record} has tokens without a log-probability")
            episode.append(answer.tokens, [*map(float, answer.log_probabilities)])
            completions.append(self._encoder.said(answer.tokens).strip())
        orders = [
            {"do": "step", "number": episode.number, "completion": completion}
            for episode, completion in zip(episodes, completions)
        ]
        by_number = {one.number: (answer, said) for one, answer, said in zip(episodes, written, completions)}
        for episode, outcome in self._ask(episodes, orders):
            self._go_on(episode, *by_number[episode.number], outcome)
        self._forget([one for one in episodes if one.is_done])

    def play(self, episodes: Sequence[Episode], generate: Generate) -> None:
        """Until all are done; those that are at the same turn are written together."""
        while waiting := [episode for episode in episodes if not episode.is_done]:
            self.advance(waiting, generate(waiting))

    def _ask_first(self, episode: Episode, messages: Sequence[Message]) -> None:
        episode.messages = [*messages]
        try:
            tokens = self._encoder.prompt(messages)
        except BadRecord as error:
            episode.fail(str(error))
            return
        if len(tokens) >= self._longest:
            episode.fail(f"its first question has {len(tokens):,} tokens, of at most {self._longest:,}")
            return
        episode.append(tokens)
        episode.prompt_tokens = len(tokens)

    def _go_on(self, episode: Episode, answer: Written, completion: str, outcome: Mapping[str, Any]) -> None:
        stop = len(episode.tokens)
        episode.turns.append(Answered(stop - len(answer.tokens), stop, outcome["reward"], answer.finished))
        if outcome["done"]:
            episode.is_done = True
            return
        if len(episode.turns) >= self._section.turns:
            episode.is_done = episode.is_cut = True
            return
        following: list[Message] = outcome["messages"]
        try:
            tokens = self._continuation.tokens(episode.messages, answer.tokens, following)
        except BadRecord as error:
            episode.fail(str(error))
            return
        if stop + len(tokens) >= self._longest:
            # No room for an answer: the question would be read by nobody.
            episode.is_done = episode.is_cut = True
            return
        episode.messages += [{"role": "assistant", "content": completion}, *following]
        episode.append(tokens)

    def _ask(
        self, episodes: Sequence[Episode], orders: Sequence[Mapping[str, Any]]
    ) -> Iterator[tuple[Episode, Mapping[str, Any]]]:
        """The episodes whose environments did what they should; the others fail."""
        for (episode, _), outcome in self._outcomes(episodes, orders):
            if "error" in outcome:
                episode.fail(outcome["error"])
            else:
                yield episode, outcome

    def _outcomes(
        self, episodes: Sequence[Episode], orders: Sequence[Mapping[str, Any]]
    ) -> Iterator[tuple[tuple[Episode, Mapping[str, Any]], Mapping[str, Any]]]:
        """Each worker has the environments of its own, and all work at the same time."""
        count = len(self._workers)
        shares = [
            [pair for pair in zip(episodes, orders) if pair[0].number % count == place]
            for place in range(count)
        ]
        with ThreadPoolExecutor(count) as threads:
            found = threads.map(self._call, self._workers, shares)
            for share, outcomes in zip(shares, found):
                yield from zip(share, outcomes, strict=True)

    def _call(
        self, worker: LimitedProcess, share: Sequence[tuple[Episode, Mapping[str, Any]]]
    ) -> Sequence[Mapping[str, Any]]:
        if not share:
            return []
        try:
            return worker.call(_arguments(self._section, [order for _, order in share]))
        except WorkerFailed as error:
            return [{"error": str(error)}] * len(share)

    def _forget(self, episodes: Sequence[Episode]) -> None:
        """Their environments wait for an answer that will not come."""
        orders = [{"do": "forget", "number": episode.number} for episode in episodes]
        for _ in self._outcomes(episodes, orders):
            continue


def setup_problems(section: EnvironmentSection, key: str = "rlhf.environment") -> Iterator[Problem]:
    """What is wrong with the class, told by importing it once in a subprocess, as it will be in the run."""
    process = LimitedProcess(HOST, "plain", section.worker)
    try:
        [outcome] = process.call(_arguments(section, [{"do": "check", "number": 0}]))
        fault = outcome.get("error")
    except WorkerFailed as error:
        fault = str(error)
    finally:
        process.close()
    if fault is not None:
        yield Problem(f"{key}.environment", section.environment, f"cannot be used: {fault}")


def _arguments(section: EnvironmentSection, orders: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {"orders": orders, "environment": section.function, "step_seconds": section.step_seconds}
