"""Which nodes of a job are not fit for training, judged from what all of them have found out. No torch.

Most things can only be told by comparing: a version is wrong because the other nodes have another, a link is
slow because theirs are faster.
"""

import re
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

MOST_CLOCK_SECONDS = 5.0
SLOW_LINK = 0.5
"""A node whose link is slower than this part of the median is bad."""
SLOW_DEVICE = 0.6
GIB = 2**30
LEAST_FREE = {"run folder": 1 * GIB, "/tmp": GIB // 4, "/dev/shm": GIB // 32}
PAIRINGS = 3

STAGES = (
    "could not reach the store at {first}",
    "could not connect to all nodes",
    "could not measure its link",
)
"""What a node has not managed that has come to stage 0, 1, 2."""
MEASURED = len(STAGES)


@dataclass(frozen=True)
class Findings:
    """What one node has found out about itself."""

    index: int
    """Its place, as the scheduler numbers the nodes."""
    name: str
    """As the scheduler calls it."""
    clock_seconds: float
    """How far its clock is ahead of the first node's."""
    sees_canary: bool
    """It has read what the first node wrote into the run folder."""
    free_bytes: dict[str, int] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    devices: int = 0
    device_kind: str = "cpu"
    matmul_flops: float = 0.0
    """Floating point operations a second of one device."""
    trouble: tuple[str, ...] = ()
    """What went wrong while looking."""
    stage: int = 0
    """How far it has come in the measuring of links; MEASURED: to the end."""
    link_bytes: float = 0.0
    """Bytes a second, of the fastest of several other nodes."""


@dataclass(frozen=True)
class Expected:
    """What the first node knows of all nodes."""

    names: Mapping[int, str]
    """Of every node of the job, by index."""
    began: frozenset[int]
    """Nodes that have left a sign in the run folder."""
    canaries: frozenset[int]
    """Nodes whose answer to the canary the first node has read."""
    gpus: int = 0
    """GPUs a node that the config asks for."""


@dataclass
class Verdict:
    """Reasons by name of the node."""

    bad: dict[str, list[str]] = field(default_factory=dict)
    warnings: dict[str, list[str]] = field(default_factory=dict)


def judge(expected: Expected, found: Mapping[int, Findings]) -> Verdict:
    """Name the nodes that are not fit, and why."""
    verdict = Verdict()
    names = unique_names(expected.names)
    for index, name in names.items():
        one = found.get(index)
        if one is None:
            reasons = [_absence(index in expected.began, names[0])]
        else:
            reasons = [*_own_faults(expected, one), *_other_versions(one, found)]
            reasons += _slow_link(one, found, names[0])
            slow = list(_slow_device(one, found))
            if one.device_kind == "cpu":
                # What else runs on a machine makes its cores slow for a while.
                if slow:
                    verdict.warnings[name] = slow
            else:
                reasons += slow
        if reasons:
            verdict.bad[name] = reasons
    return verdict


def _absence(began: bool, first: str) -> str:
    if began:
        return f"runs and sees the run folder, but has not reported over TCP to {first} in time"
    return "has given no sign, neither over TCP nor in the run folder"


def _own_faults(expected: Expected, one: Findings) -> Iterator[str]:
    if not one.sees_canary:
        yield "does not see what the first node has written into the run folder: it is not the same folder"
    elif one.index not in expected.canaries:
        yield "wrote a file into the run folder that the first node does not see"
    if abs(one.clock_seconds) > MOST_CLOCK_SECONDS:
        direction = "ahead of" if one.clock_seconds > 0 else "behind"
        yield f"its clock is {abs(one.clock_seconds):.1f} s {direction} the first node's"
    for place, free in one.free_bytes.items():
        if free < LEAST_FREE[place]:
            yield f"{place}: {free / GIB:.2f} GiB free, {LEAST_FREE[place] / GIB:g} are needed"
    if one.devices < expected.gpus:
        yield f"{one.devices} GPUs work, {expected.gpus} are asked for"
    yield from one.trouble


def _other_versions(one: Findings, found: Mapping[int, Findings]) -> Iterator[str]:
    """What differs from most nodes; where two are as frequent, the first node's counts."""
    for library in sorted({library for other in found.values() for library in other.versions}):
        seen = [found[index].versions.get(library, "missing") for index in sorted(found)]
        usual = Counter(seen).most_common(1)[0][0]
        mine = one.versions.get(library, "missing")
        if mine != usual:
            yield f"{library} is {mine}, on other nodes {usual}"


def _slow_link(one: Findings, found: Mapping[int, Findings], first: str) -> Iterator[str]:
    furthest = max(other.stage for other in found.values())
    if one.stage < furthest:
        yield STAGES[one.stage].format(first=first)
    links = [other.link_bytes for other in found.values() if other.link_bytes]
    # Of two nodes both have the same link.
    if len(links) < 3 or not one.link_bytes:
        return
    usual = statistics.median(links)
    if one.link_bytes < SLOW_LINK * usual:
        yield f"its link carries {one.link_bytes / 1e6:.0f} MB/s, others' {usual / 1e6:.0f}"


def _slow_device(one: Findings, found: Mapping[int, Findings]) -> Iterator[str]:
    rates = [other.matmul_flops for other in found.values() if other.matmul_flops]
    usual = statistics.median(rates) if rates else 0.0
    if one.matmul_flops and one.matmul_flops < SLOW_DEVICE * usual:
        yield f"multiplies matrices at {one.matmul_flops / usual:.0%} of the others' speed"


def unique_names(names: Mapping[int, str]) -> dict[int, str]:
    """Several nodes on one machine get their place behind its name."""
    count = Counter(names.values())
    return {index: name if count[name] == 1 else f"{name}/{index}" for index, name in sorted(names.items())}


def pairings(nodes: int, rounds: int = PAIRINGS) -> list[dict[int, int]]:
    """Rounds in which every node has another one to itself: node -> partner.

    With an odd number one sits out. As everybody meets several others, a slow node's partners are slow in
    one round only.
    """
    places: list[int | None] = [*range(nodes), *([None] if nodes % 2 else [])]
    result: list[dict[int, int]] = []
    for _ in range(min(rounds, len(places) - 1)):
        partners: dict[int, int] = {}
        for one, other in zip(places[: len(places) // 2], reversed(places)):
            if one is not None and other is not None:
                partners |= {one: other, other: one}
        result.append(partners)
        places = [places[0], places[-1], *places[1:-1]]
    return result


def expand_hosts(text: str) -> list[str]:
    """SLURM's list of hosts, one by one: `node[03-05,9],login1`.

    >>> expand_hosts("node[03-05,9],login1")
    ['node03', 'node04', 'node05', 'node9', 'login1']
    """
    hosts: list[str] = []
    for part in re.findall(r"[^,\[]+(?:\[[^\]]*\][^,\[]*)*", text):
        hosts += _expand(part)
    return hosts


def _expand(part: str) -> list[str]:
    match = re.search(r"\[([^\]]*)\]", part)
    if match is None:
        return [part]
    numbers: list[str] = []
    for span in match[1].split(","):
        first, _, last = span.partition("-")
        numbers += [f"{n:0{len(first)}}" for n in range(int(first), int(last or first) + 1)]
    head, tail = part[: match.start()], part[match.end() :]
    return [head + number + rest for number in numbers for rest in _expand(tail)]
