"""A reward model with its head, composed: in this process, or in ranks that it talks to through pipes.

It comes from a run, one of its checkpoints (with PEFT: base, update and head), or from a Hugging Face folder
for `AutoModelForSequenceClassification` with one label: `find_target(…, scores=True)`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Protocol

from llmscale.checkpoint.errors import CheckpointError
from llmscale.config.problems import InputError
from llmscale.engine.score import Scorer
from llmscale.parallel.distributed import disconnect
from llmscale.parallel.environment import RankEnvironment
from llmscale.run.loaded_model import load_model
from llmscale.run.rank_team import RankTeam, answer, answer_errors
from llmscale.run.target import Target


class RewardModel(Protocol):
    def scores(self, texts: Sequence[Sequence[int]]) -> list[float]:
        """Of each text, at its last token; what ends an answer is part of it."""
        ...


def load_reward_model(target: Target, environment: RankEnvironment) -> Scorer:
    """This rank's part of the model, with its weights and its head. Collective.

    Args:
        target: a reward model, and the layout to have it under.

    Raises:
        InputError: the weights do not fit the model. CheckpointError: they are damaged, or a base has gone.
    """
    chunks, world = load_model(
        target.config, target.vocabulary_size, environment, target.weights, target.base
    )
    return Scorer(chunks, world, target.config.peft.placeholders)


@contextmanager
def open_reward_model(target: Target) -> Iterator[RewardModel]:
    """The target's model, ready to score: in this process where one rank is enough.

    Raises:
        InputError: the checkpoint does not fit the model. CheckpointError: it is damaged.
        RanksFailed: a rank has ended.
    """
    if target.ranks == 1:
        try:
            yield _Here(load_reward_model(target, RankEnvironment()))
        finally:
            disconnect()
        return
    with _Team.opened(target.ranks, serve, target) as team:
        team.expect("ready")
        yield team


class _Here:
    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer

    def scores(self, texts: Sequence[Sequence[int]]) -> list[float]:
        return self._scorer.scores(texts).tolist()


class _Team(RankTeam):
    """Ranks that hold the model together; rank 0 answers."""

    def scores(self, texts: Sequence[Sequence[int]]) -> list[float]:
        self.order(texts)
        return self.expect("scores")


def serve(target: Target, orders: Connection) -> int:
    """One rank of a team: load, then score what is ordered until the pipe closes."""
    try:
        scorer = load_reward_model(target, RankEnvironment.from_variables())
    except (InputError, CheckpointError) as error:
        return answer_errors(orders, error)
    answer(orders, "ready", None)
    while True:
        try:
            texts = orders.recv()
        except EOFError:
            return 0
        answer(orders, "scores", scorer.scores(texts).tolist())
