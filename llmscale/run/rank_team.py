"""Ranks of this machine that a command starts, talks to through pipes, and ends."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TypeVar

from llmscale.checkpoint.errors import CheckpointError
from llmscale.config.problems import InputError
from llmscale.parallel.environment import RankEnvironment
from llmscale.runtime.ranks import CONTEXT, RankProcess, kill_ranks, start_rank
from llmscale.runtime.rendezvous import LOOPBACK, interface_of, open_store

LAST_WORDS_SECONDS = 10.0
Subject = TypeVar("Subject")
Team = TypeVar("Team", bound="RankTeam")


class RanksFailed(Exception):
    """A rank ended; the message is what it said last."""


class RankTeam:
    """Ranks that each run `serve(subject, orders)`, `orders` being a pipe to this process. Rank 0 answers
    with `answer`."""

    def __init__(
        self, world_size: int, serve: Callable[[Subject, Connection], int], subject: Subject, logs: Path
    ) -> None:
        # The ranks meet in it for as long as they live.
        self._store, port = open_store(LOOPBACK)
        interface = interface_of(LOOPBACK)
        variables = {
            "WORLD_SIZE": world_size,
            "LOCAL_WORLD_SIZE": world_size,
            "MASTER_ADDR": LOOPBACK,
            "MASTER_PORT": port,
            "TORCHELASTIC_USE_AGENT_STORE": True,
            "GLOO_SOCKET_IFNAME": interface,
            "NCCL_SOCKET_IFNAME": interface,
        }
        self.ranks: list[RankProcess] = []
        self._pipes: list[Connection] = []
        for rank in range(world_size):
            own = {
                name: str(value) for name, value in {**variables, "RANK": rank, "LOCAL_RANK": rank}.items()
            }
            here, there = CONTEXT.Pipe()
            self._pipes.append(here)
            self.ranks.append(start_rank(rank, serve, (subject, there), own, logs / f"rank-{rank}.log"))
            there.close()

    @classmethod
    @contextmanager
    def opened(
        cls: type[Team], world_size: int, serve: Callable[[Subject, Connection], int], subject: Subject
    ) -> Iterator[Team]:
        """The ranks, which end with the block; so do their logs."""
        with tempfile.TemporaryDirectory(prefix="llmscale-ranks-") as logs:
            team = cls(world_size, serve, subject, Path(logs))
            try:
                yield team
            finally:
                kill_ranks(team.ranks)

    def order(self, content: Any) -> None:
        """Send `content` to every rank.

        Raises:
            RanksFailed: one has ended.
        """
        try:
            for pipe in self._pipes:
                pipe.send(content)
        except BrokenPipeError:
            raise RanksFailed(self._last_words()) from None

    def expect(self, kind: str, on_other: Callable[[Any], None] | None = None) -> Any:
        """Wait for rank 0's answer of that kind; answers of others go to `on_other`.

        Raises:
            InputError, CheckpointError: what the ranks found wrong. RanksFailed: one has ended.
        """
        answers = self._pipes[0]
        while True:
            wait([answers, *(rank.process.sentinel for rank in self.ranks)])
            # Where another rank has ended, rank 0 may be about to say why.
            if not answers.poll(LAST_WORDS_SECONDS):
                raise RanksFailed(self._last_words())
            try:
                answered, content = answers.recv()
            except EOFError:
                raise RanksFailed(self._last_words()) from None
            if answered == kind:
                return content
            if answered == "problems":
                raise InputError(content)
            if answered == "damage":
                raise CheckpointError(content)
            if on_other is not None:
                on_other(content)

    def _last_words(self) -> str:
        """How the rank that ended first did so, and the end of its log."""
        wait([rank.process.sentinel for rank in self.ranks], LAST_WORDS_SECONDS)
        for rank in self.ranks:
            rank.poll()
        ended = [rank for rank in self.ranks if rank.process.exitcode is not None]
        if not ended:
            return "a rank does not answer any more"
        # One that was killed says nothing, and the others end because of it.
        first = min(ended, key=lambda rank: rank.ending.time if rank.ending else 0.0)
        cause = first.ending.cause if first.ending else f"exit code {first.process.exitcode}"
        return "\n".join([f"rank {first.rank} ended: {cause}", *first.log_tail()])


def answer(orders: Connection, kind: str, content: Any) -> None:
    """Called by every rank; rank 0's is heard."""
    if RankEnvironment.from_variables().rank == 0:
        orders.send((kind, content))


def answer_errors(orders: Connection, error: InputError | CheckpointError) -> int:
    """Tell what a rank found wrong; returns the exit code that says the same."""
    if isinstance(error, InputError):
        answer(orders, "problems", error.problems)
        return 2
    answer(orders, "damage", str(error))
    return 1
