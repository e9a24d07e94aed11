"""The actor's weights on their way to those who write with a copy of them: lot after lot through Ray's object
store, never through the driver."""

from llmscale.parallel.layout import Coordinates
from llmscale.rlhf.group import Group


def hand_over(actor: Group, writer: Group, seconds: float | None = None) -> int:
    """Give the writers the actor's weights as they stand; returns their version. Where something is missing
    or damaged the writers keep the old ones, and the error is raised here.

    Raises:
        WorkerLost, WorkerFailed: see `Calls.results`.
    """
    version, lots = actor.tell("open_stream").results(seconds)[0]
    layout = actor.layout
    speaker = layout.rank(Coordinates(0, 0, 0, layout.pipeline - 1))
    under_way = []
    for _ in range(lots):
        lot = actor.tell("next_lot")
        under_way += [lot, writer.tell("take", lot.references[speaker])]
    for calls in under_way:
        calls.results(seconds)
    writer.tell("load", version).results(seconds)
    return version
