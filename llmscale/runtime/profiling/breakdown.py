"""Where the time and the memory of recorded steps go, from a chrome trace of torch's profiler. No torch.

Each moment of a step counts once, for the innermost operation that the training thread is in. A moment that
is in no operation while something is being sent or received is waiting for it: communication. What is left is
"outside operations": Python and autograd's engine.
"""

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from llmscale.runtime.profiling.kinds import COLLECTIVE, OUTSIDE, Kind, is_allocator, is_operation
from llmscale.runtime.profiling.phases import Phase
from llmscale.runtime.profiling.timeline import SPANS, Event, Span, Stretch, Timeline, timeline

MOST_OPERATIONS = 10
MICROSECOND = 1e-6
ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
"""Categories of what a GPU does."""
DEVICES = {0: "cpu", 1: "cuda"}
"""By torch's number of their type."""


@dataclass(frozen=True)
class Operation:
    """All calls of one operation with inputs of the same shapes. Calls, seconds and bytes are a step's."""

    name: str
    kind: Kind
    shapes: str
    """Of its inputs, as `2 × [8, 512] [512, 64]`; those that are no tensors are left out."""
    calls: float = 0.0
    seconds: float = 0.0
    """In itself, without the operations that it is made of."""
    bytes: float = 0.0
    """That it has asked for, whether or not it has given them back since."""


@dataclass(frozen=True)
class Breakdown:
    """The mean of the recorded steps on one rank."""

    first: int
    last: int
    rank: int
    stage: int
    """Of the pipeline."""
    step_seconds: float
    """From asking for the batches to the end of the update; recording makes it longer."""
    seconds: dict[Phase, dict[Kind, float]]
    """Their sum is `step_seconds`."""
    device_seconds: dict[Kind, float]
    """That a GPU was busy for each kind; empty without one. Streams work side by side."""
    slowest: list[Operation]
    largest: list[Operation]
    """Those that asked for the most memory."""
    peak_bytes: dict[str, int]
    """Most that tensors took at any moment of the steps, by device. `cpu`: those made since the recording
    began."""

    @property
    def steps(self) -> str:
        return f"step {self.first}" if self.first == self.last else f"steps {self.first}–{self.last}"

    def seconds_of(self, kind: Kind) -> float:
        return sum(of_phase.get(kind, 0.0) for of_phase in self.seconds.values())


def break_down(trace: dict[str, Any], first: int, last: int, rank: int, stage: int) -> Breakdown:
    """What the steps `first` to `last` of a rank were spent on.

    Args:
        trace: the whole file.

    Raises:
        ValueError: there is no step in it.
    """
    events: list[Event] = trace["traceEvents"]
    line = timeline(events)
    count = len(line.steps)
    spent = list(_spent(line, _under_way(events)))
    seconds: dict[Phase, dict[Kind, float]] = {}
    for one in spent:
        of_phase = seconds.setdefault(one.phase, {})
        of_phase[one.kind] = of_phase.get(one.kind, 0.0) + one.seconds / count
    operations = _operations(line, spent, _allocated(events, line), count)
    return Breakdown(
        first=first,
        last=last,
        rank=rank,
        stage=stage,
        step_seconds=sum(step.end - step.start for step in line.steps) * MICROSECOND / count,
        seconds=seconds,
        device_seconds=_device_seconds(events, line, count),
        slowest=sorted(operations, key=lambda one: -one.seconds)[:MOST_OPERATIONS],
        largest=sorted(operations, key=lambda one: -one.bytes)[:MOST_OPERATIONS],
        peak_bytes=_peak_bytes(events, line),
    )


@dataclass(frozen=True)
class _Spent:
    """A time for which one thing was done, or waited for."""

    seconds: float
    phase: Phase
    kind: Kind
    on: Span


def _under_way(events: Sequence[Event]) -> list[Span]:
    """Collectives one after the other: of several at a time the one that began first."""
    found = [event for event in events if event.get("cat") in SPANS and COLLECTIVE.match(event["name"])]
    disjoint: list[Span] = []
    for span in sorted((Span.of(event) for event in found), key=lambda span: span.start):
        if disjoint:
            span.start = max(span.start, disjoint[-1].end)
        if span.end > span.start:
            disjoint.append(span)
    return disjoint


def _spent(line: Timeline, collectives: Sequence[Span]) -> Iterator[_Spent]:
    """Every moment of the steps once."""
    ends = [span.end for span in collectives]
    for stretch in line.stretches:
        next_wait = bisect_right(ends, stretch.start)
        if is_operation(stretch.span.name):
            next_wait = len(collectives)
        yield from _cut(stretch, collectives, next_wait)


def _cut(stretch: Stretch, collectives: Sequence[Span], next_wait: int) -> Iterator[_Spent]:
    """A stretch, with what was waited for in it apart."""
    phase, now = stretch.span.phase, stretch.start
    assert phase is not None
    while next_wait < len(collectives) and collectives[next_wait].start < stretch.end:
        span = collectives[next_wait]
        begins, ends = max(span.start, now), min(span.end, stretch.end)
        yield _Spent((begins - now) * MICROSECOND, phase, stretch.span.kind, stretch.span)
        yield _Spent((ends - begins) * MICROSECOND, phase, "communication", span)
        now, next_wait = ends, next_wait + 1
    yield _Spent((stretch.end - now) * MICROSECOND, phase, stretch.span.kind, stretch.span)


def _operations(
    line: Timeline, spent: Sequence[_Spent], allocated: Counter[Span], steps: int
) -> list[Operation]:
    seconds: defaultdict[Span, float] = defaultdict(float)
    kinds: dict[Span, Kind] = {span: span.kind for span in line.spans}
    for one in spent:
        if one.kind != OUTSIDE:
            seconds[one.on] += one.seconds
            kinds[one.on] = one.kind
    found: dict[tuple[str, Kind, str], list[Span]] = {}
    for span, kind in kinds.items():
        if kind != OUTSIDE or allocated[span]:
            found.setdefault((span.name, kind, span.shapes), []).append(span)
    return [
        Operation(
            *key,
            calls=len(spans) / steps,
            seconds=sum(seconds[span] for span in spans) / steps,
            bytes=sum(allocated[span] for span in spans) / steps,
        )
        for key, spans in found.items()
    ]


def _allocated(events: Sequence[Event], line: Timeline) -> Counter[Span]:
    """Bytes that each operation has asked for."""
    starts = [stretch.start for stretch in line.stretches]
    allocated: Counter[Span] = Counter()
    for event in _memory_events(events, line):
        stretch = line.stretches[bisect_right(starts, event["ts"]) - 1]
        if event["args"]["Bytes"] > 0 and stretch.start <= event["ts"] <= stretch.end:
            allocated[_asking(stretch.span)] += event["args"]["Bytes"]
    return allocated


def _asking(span: Span) -> Span:
    """For whom an operation that only gets memory does so."""
    while is_allocator(span.name) and span.parent is not None:
        span = span.parent
    return span


def _peak_bytes(events: Sequence[Event], line: Timeline) -> dict[str, int]:
    peaks: dict[str, int] = {}
    for event in _memory_events(events, line):
        device = DEVICES.get(event["args"]["Device Type"], "other")
        peaks[device] = max(peaks.get(device, 0), event["args"]["Total Allocated"])
    return peaks


def _memory_events(events: Sequence[Event], line: Timeline) -> Iterator[Event]:
    for event in events:
        if event.get("name") == "[memory]" and any(s.start <= event["ts"] <= s.end for s in line.steps):
            yield event


def _device_seconds(events: Sequence[Event], line: Timeline, steps: int) -> dict[Kind, float]:
    kinds: dict[int, Kind] = {span.number: span.kind for span in line.spans}
    seconds: dict[Kind, float] = {}
    for event in events:
        number = event.get("args", {}).get("External id")
        if event.get("cat") in ON_DEVICE and number in kinds:
            kind = kinds[number]
            seconds[kind] = seconds.get(kind, 0.0) + event["dur"] * MICROSECOND / steps
    return seconds
