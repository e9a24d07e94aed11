"""Places for the workers of pools on a Ray: for all of them at once, or for none."""

import random
import time
from collections.abc import Collection, Sequence

from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from llmscale.rlhf.workers.placement import PoolAsk
from llmscale.runtime import stop_signal

PATIENCE_SECONDS = 15.0
"""How long at least what there is for some pools is held while others have none."""
PAUSE_SECONDS = 5.0
POLL_SECONDS = 0.25


class NoPlace(Exception):
    """Others use the Ray, or it has lost machines, and not all pools found a place in time."""


def reserve(asks: Sequence[PoolAsk], seconds: float) -> dict[str, PlacementGroup]:
    """A placement group for every pool, by its name.

    Two runs that hold half of a Ray each would wait for one another for ever; so one that does not get all
    lets go of what it has after a while, and tries again a little later.

    Args:
        seconds: how long it may take.

    Raises:
        NoPlace: there is none in time, or somebody asks this run to stop meanwhile.
    """
    chance = random.SystemRandom()
    deadline = time.monotonic() + seconds
    while True:
        groups = {ask.name: placement_group(ask.bundles, ask.strategy) for ask in asks}
        if _are_ready(groups.values(), min(deadline, _after(chance.uniform(1, 2) * PATIENCE_SECONDS))):
            return groups
        for group in groups.values():
            remove_placement_group(group)
        wanted = "; ".join(map(str, asks))
        if stop_signal.requested():
            raise NoPlace(f"asked to stop while waiting for a place ({wanted})")
        if time.monotonic() >= deadline:
            raise NoPlace(f"no place for all pools in {seconds:.0f} s ({wanted}): others use this Ray")
        print(f"waits for a place for all pools ({wanted})", flush=True)
        time.sleep(chance.uniform(0, PAUSE_SECONDS))


def _after(seconds: float) -> float:
    return time.monotonic() + seconds


def _are_ready(groups: Collection[PlacementGroup], deadline: float) -> bool:
    """Whether all of them are ours before the deadline; a signal ends the wait."""
    waiting = list(groups)
    while waiting and time.monotonic() < deadline and not stop_signal.requested():
        waiting = [group for group in waiting if not group.wait(POLL_SECONDS)]
    return not waiting
