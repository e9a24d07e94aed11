"""What agents and the coordinator tell each other. No torch.

Both kinds of message are *states*, not requests: a report says all there is to say about an agent, an order
says all that the agent should be doing. Either may be lost, doubled or overtaken; the next one says it again,
and numbers tell which is newer.
"""

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from llmscale.control.watchdog import Beat

AgentState = Literal["idle", "open", "running", "failed", "done"]
"""idle: no ranks; open: no ranks, and the store of the generation listens; running: ranks are there; failed:
a rank ended that should not have, and no ranks are left; done: all ranks of the node are done."""

FailureKind = Literal["signal", "exit", "error", "out of memory", "refused", "hang", "node lost"]


@dataclass(frozen=True)
class Failure:
    """The rank that failed first, as far as can be told."""

    rank: int
    host: str
    pid: int
    cause: str
    """`killed by SIGKILL`, `exit code 0 before it was done`, `ValueError: ...`"""
    exit_code: int | None
    """What the entry returned: a verdict on the run (2: bad input), which a restart would only repeat."""
    log: str
    log_lines: tuple[str, ...]
    kind: FailureKind = "error"
    time: float = 0.0
    """When it was noticed, seconds since 1970: tells the first of several."""

    @property
    def silent(self) -> bool:
        """It ended without a word: ranks that lose a dead one's connection speak."""
        return self.kind in ("signal", "exit", "out of memory")

    def describe(self) -> str:
        """For people: who, why, and the rank's last words."""
        head = f"rank {self.rank} on {self.host} (pid {self.pid}) failed: {self.cause}"
        return "\n".join([head, *(f"  | {line}" for line in self.log_lines), f"  whole log: {self.log}"])


def first_failure(failures: list[Failure]) -> Failure:
    """Whose fault it was: a rank that ended without a word before those that spoke, of several silent
    ones a signal before an early exit, of those that spoke the first."""
    return min(
        failures,
        key=lambda failure: (not failure.silent, failure.silent and failure.kind == "exit", failure.time),
    )


@dataclass(frozen=True)
class Evidence:
    """What was found when the coordinator had the ranks of a node looked at."""

    rank: int
    host: str
    pid: int
    process_state: str
    """One letter, as in /proc/PID/stat: R running, S asleep, D waiting for a disk, T stopped, Z gone."""
    stack: tuple[str, ...]
    """Python frames of the main thread, innermost first; empty where the rank did not answer."""
    step: int


@dataclass(frozen=True)
class Report:
    """Everything that the coordinator needs to know of one agent."""

    agent: str
    """Different for every agent process, also for two on one host after each other."""
    host: str
    address: str
    """Where ranks of other nodes reach this node."""
    index: int
    """The place that the scheduler gave the node."""
    number: int
    """Rises with each report of this agent."""
    coordinator: str = ""
    """Whose orders it follows; empty before the first."""
    order: int = 0
    """Number of the newest order it has carried out."""
    generation: int = 0
    """What `state` is about."""
    state: AgentState = "idle"
    port: int = 0
    """Where the store of the generation listens; for the state open, and running on the first node."""
    failure: Failure | None = None
    codes: dict[int, int] = field(default_factory=dict)
    """Rank -> what its entry returned; complete in the state done."""
    signal: str | None = None
    """Name of the signal that asked this node to stop."""
    beats: dict[int, Beat] = field(default_factory=dict)
    examined: int = 0
    """Number of the examination that `evidence` answers."""
    evidence: tuple[Evidence, ...] = ()


@dataclass(frozen=True)
class Happening:
    """Something for `events.jsonl`, and for the terminal where `text` is set. An empty kind is for the
    terminal alone."""

    kind: str
    step: int | None
    details: dict[str, Any] = field(default_factory=dict)
    text: str = ""


OrderKind = Literal["wait", "open", "run", "leave"]
"""wait: have no ranks; open: have no ranks, and a store listening; run: have these ranks; leave: have no
ranks, and end with the exit code."""


@dataclass(frozen=True)
class Place:
    """A node's part of a generation of ranks."""

    node_rank: int
    nodes: int
    first_rank: int
    processes: int
    world_size: int
    master_address: str
    master_port: int
    restart_count: int


@dataclass(frozen=True)
class Order:
    """Everything that an agent should be doing."""

    coordinator: str
    number: int
    """Rises with each order that differs from the one before."""
    kind: OrderKind
    generation: int = 0
    place: Place | None = None
    save: bool = False
    """run: the ranks are to save after their step, and leave."""
    examine: int = 0
    """run: number of the examination that is asked for; 0: none."""
    exit_code: int = 0
    reason: str = ""
    answers: int = 0
    """Number of the newest report that the coordinator had from this agent: its lease runs from then on."""


def encode(message: Report | Order) -> str:
    """One line of JSON."""
    return json.dumps(asdict(message))


def decode_report(line: str) -> Report:
    """
    Raises:
        ValueError, KeyError, TypeError: the line is no report.
    """
    fields: dict[str, Any] = json.loads(line)
    failure = fields.pop("failure")
    if failure is not None:
        failure = Failure(**{**failure, "log_lines": tuple(failure["log_lines"])})
    beats = {int(rank): Beat(**beat) for rank, beat in fields.pop("beats").items()}
    codes = {int(rank): code for rank, code in fields.pop("codes").items()}
    evidence = tuple(
        Evidence(**{**found, "stack": tuple(found["stack"])}) for found in fields.pop("evidence")
    )
    return Report(failure=failure, beats=beats, codes=codes, evidence=evidence, **fields)


def decode_order(line: str) -> Order:
    """
    Raises:
        ValueError, KeyError, TypeError: the line is no order.
    """
    fields: dict[str, Any] = json.loads(line)
    place = fields.pop("place")
    return Order(place=None if place is None else Place(**place), **fields)
