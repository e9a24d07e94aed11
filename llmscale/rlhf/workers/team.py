"""The workers that a pool has from one start to the next: who they are, and what is said of a lost one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ray

from llmscale.control.culprit import find_culprit
from llmscale.rlhf.workers.look import look_at
from llmscale.rlhf.workers.lost import WorkerLost
from llmscale.rlhf.workers.placement import PoolAsk
from llmscale.rlhf.workers.pulse import Pulse

TOLD = ("The actor is dead because", "The actor died because")
"""How the line of an error of Ray begins that says what has happened."""


@dataclass
class Team:
    """
    Args:
        ask: of the pool.
        variables: of the environment of every worker.
        stacks: folder where workers write what they are doing, when they are asked.
        seconds: how long one call may take, where the call says nothing; None: for ever.
    """

    ask: PoolAsk
    variables: Mapping[str, str]
    stacks: Path
    seconds: float | None
    pulse: Pulse
    hosts: Sequence[str] = ()
    """By rank; none before all have been placed."""
    pids: Sequence[int] = ()
    nodes: Sequence[str] = ()
    """Their identities in Ray."""

    def of(self, rank: int) -> str:
        return f"pool {self.ask.name}, rank {rank} on {self._host(rank)}"

    def lost(self, rank: int, cause: str) -> WorkerLost:
        return WorkerLost(self.ask.name, self.ask.roles, rank, self._host(rank), cause)

    def ended(self, rank: int, what: str, error: Exception) -> WorkerLost:
        """A process that is not there any more."""
        if self.nodes and self.nodes[rank] not in {node["NodeID"] for node in ray.nodes() if node["Alive"]}:
            return self.lost(rank, f"its node is gone, during {what}")
        pid = f" (pid {self.pids[rank]})" if self.pids else ""
        return self.lost(rank, f"the process{pid} has ended during {what}; {_last_words(error)}")

    def late(self, ranks: Sequence[int], what: str, seconds: float) -> WorkerLost:
        """Processes that have not answered in time: of those, the one that holds up the others."""
        cause = f"{what} is not done after {seconds:.0f} s"
        # One of several that wait for each other in a collective; all of them are late.
        cause += f" on {'rank' if len(ranks) == 1 else 'ranks'} {', '.join(map(str, ranks))}"
        if not self.pids:
            return self.lost(ranks[0], cause)
        by_node: dict[str, dict[int, int]] = {}
        for rank in ranks:
            by_node.setdefault(self.nodes[rank], {})[rank] = self.pids[rank]
        evidence = look_at(self.stacks, by_node, self.variables, self.pulse.beat)
        if not evidence:
            return self.lost(ranks[0], cause)
        culprit, reason = find_culprit(evidence)
        stack = "".join(f"\n  | {line}" for line in culprit.stack)
        return self.lost(culprit.rank, f"{cause}; this one (pid {culprit.pid}) {reason}{stack}")

    def _host(self, rank: int) -> str:
        return self.hosts[rank] if self.hosts else "a node that is not known yet"


def _last_words(error: Exception) -> str:
    """What Ray knows of it: how, of the many things that it says."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line.startswith(TOLD)]
    text = (told or lines or ["?"])[0].partition(" Some common causes include")[0]
    return text.rpartition("Worker exit detail: ")[2]
