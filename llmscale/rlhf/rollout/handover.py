"""The actor's weights on their way to those who write with a copy of them: lot after lot through Ray's object
store, never through the driver."""

from collections.abc import Sequence

from llmscale.config.rlhf_pools import RolloutSection
from llmscale.parallel.layout import Coordinates
from llmscale.rlhf.models import Models
from llmscale.rlhf.rollout.engine import Request, Written
from llmscale.rlhf.workers.group import Group


def hand_over(actor: Group, writer: Group) -> int:
    """Give the writers the actor's weights as they stand; returns their version. Where something is missing
    or damaged the writers keep the old ones, and the error is raised here.

    Raises:
        WorkerLost, WorkerFailed: see `Calls.results`.
    """
    version, lots = actor.tell("open_stream").results()[0]
    layout = actor.layout
    speaker = layout.rank(Coordinates(0, 0, 0, layout.pipeline - 1))
    under_way = []
    for _ in range(lots):
        lot = actor.tell("next_lot")
        under_way += [lot, writer.tell("take", lot.references[speaker])]
    for calls in under_way:
        calls.results()
    writer.tell("load", version).results()
    return version


class Writers:
    """Who writes the answers: the actor itself, or models of their own that it gives its weights."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._step: int | None = None
        """Of the run, whose weights they have."""
        self._version = 0

    def take_weights(self, step: int) -> None:
        """Write with the weights of now, which are those of this step of the run.

        Raises:
            WorkerLost, WorkerFailed: see `Calls.results`.
        """
        if self._models.writer is not None and self._step != step:
            self._version = hand_over(self._models.actor, self._models.writer)
            self._step = step

    def forget(self) -> None:
        """They have no weights."""
        self._step = None

    def write(self, requests: Sequence[Request], options: RolloutSection) -> list[Written]:
        """An answer to each.

        Raises:
            WorkerLost, WorkerFailed: see `Calls.results`. RuntimeError: other weights have written.
        """
        writer = self._models.writer
        written = (writer or self._models.actor).submit("generate", requests, options).results()
        others = {one.version for one in written} - {self._version} if writer is not None else set()
        if others:
            raise RuntimeError(f"weights of version {others} have written, and {self._version} were to")
        return written
