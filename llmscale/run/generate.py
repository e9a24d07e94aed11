"""Generation, composed: a target's weights in this process, or in ranks that it talks to through pipes."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

from llmscale.checkpoint.agreement import Agreement
from llmscale.checkpoint.errors import CheckpointError
from llmscale.checkpoint.loader import load_weights
from llmscale.config.problems import InputError
from llmscale.engine.generate import Generator, OnTokens
from llmscale.engine.sampling import SamplingOptions
from llmscale.model.build import build_chunks
from llmscale.model.weights import weights_to_fill
from llmscale.parallel.distributed import connect, disconnect, use_threads
from llmscale.parallel.environment import RankEnvironment
from llmscale.parallel.layout import Layout
from llmscale.parallel.world import World
from llmscale.run.target import Target
from llmscale.runtime.ranks import CONTEXT, RankProcess, kill_ranks, start_rank
from llmscale.runtime.rendezvous import LoopbackRendezvous, loopback_interface

LAST_WORDS_SECONDS = 10.0


class RanksFailed(Exception):
    """A rank ended; the message is what it said last."""


class Writer(Protocol):
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        options: SamplingOptions,
        on_tokens: OnTokens | None = None,
    ) -> list[list[int]]:
        """As `Generator.generate`."""
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
    with tempfile.TemporaryDirectory(prefix="llmscale-generate-") as logs:
        team = RankTeam(target, Path(logs))
        try:
            team.expect("ready")
            yield team
        finally:
            kill_ranks(team.ranks)


def load_generator(target: Target, environment: RankEnvironment) -> Generator:
    """This rank's part of the model, with its weights."""
    config = target.config
    use_threads(config.cluster.threads, environment.local_world_size)
    device = connect(environment)
    world = World(Layout.of(config.parallel, environment.world_size), device)
    with world.active():
        chunks = build_chunks(config.model, config.train, target.vocabulary_size, world)
        with weights_to_fill(chunks) as pieces:
            agreement = Agreement(world.rank, world.layout.world_size, world.control_group)
            load_weights(target.weights, pieces, agreement)
    return Generator(chunks, world)


class RankTeam:
    """Ranks that hold the model together. Each gets its orders through a pipe; rank 0 answers."""

    def __init__(self, target: Target, logs: Path) -> None:
        self._rendezvous = LoopbackRendezvous()
        meeting = self._rendezvous.next_rendezvous().bootstrap_store_info
        assert meeting is not None
        interface = loopback_interface()
        variables = {
            "WORLD_SIZE": target.ranks,
            "LOCAL_WORLD_SIZE": target.ranks,
            "MASTER_ADDR": meeting.master_addr,
            "MASTER_PORT": meeting.master_port,
            "TORCHELASTIC_USE_AGENT_STORE": True,
            "GLOO_SOCKET_IFNAME": interface,
            "NCCL_SOCKET_IFNAME": interface,
        }
        self.ranks: list[RankProcess] = []
        self._pipes: list[Connection] = []
        for rank in range(target.ranks):
            own = {
                name: str(value) for name, value in {**variables, "RANK": rank, "LOCAL_RANK": rank}.items()
            }
            here, there = CONTEXT.Pipe()
            self._pipes.append(here)
            self.ranks.append(start_rank(rank, serve, (target, there), own, logs / f"rank-{rank}.log"))
            there.close()

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        options: SamplingOptions,
        on_tokens: OnTokens | None = None,
    ) -> list[list[int]]:
        try:
            for pipe in self._pipes:
                pipe.send((prompts, options))
        except BrokenPipeError:
            raise RanksFailed(self._last_words()) from None
        return self.expect("texts", on_tokens)

    def expect(self, kind: str, on_tokens: OnTokens | None = None) -> Any:
        """Wait for rank 0's answer of that kind.

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
                answer, content = answers.recv()
            except EOFError:
                raise RanksFailed(self._last_words()) from None
            if answer == kind:
                return content
            if answer == "problems":
                raise InputError(content)
            if answer == "damage":
                raise CheckpointError(content)
            if on_tokens is not None:
                on_tokens(content)

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


def serve(target: Target, orders: Connection) -> int:
    """One rank of a team: load, then write what is ordered until the pipe closes."""
    environment = RankEnvironment.from_variables()
    answers = orders if environment.rank == 0 else None
    try:
        generator = load_generator(target, environment)
    except InputError as error:
        _answer(answers, "problems", error.problems)
        return 2
    except CheckpointError as error:
        _answer(answers, "damage", str(error))
        return 1
    _answer(answers, "ready", None)
    while True:
        try:
            prompts, options = orders.recv()
        except EOFError:
            return 0
        texts = generator.generate(prompts, options, lambda tokens: _answer(answers, "tokens", tokens))
        _answer(answers, "texts", texts)


def _answer(answers: Connection | None, kind: str, content: Any) -> None:
    if answers is not None:
        answers.send((kind, content))
