"""A trace of torch's profiler as one line of time: at each moment of a step, the innermost thing that the
training thread is in. No torch.

Autograd runs the backward pass on the thread that asks for it, or, on a GPU, on one of its own while the
first one waits: what that one does stands in the place of the waiting.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from llmscale.runtime.profiling.kinds import COLLECTIVE, WHOLE, Kind, kind_of
from llmscale.runtime.profiling.phases import STEP, Phase, phase_of

Event = dict[str, Any]
SPANS = ("cpu_op", "user_annotation")
"""Categories of what a thread is in for a while: operations and marks."""
BACKWARD = "autograd::engine::evaluate_function"


@dataclass(eq=False)
class Span:
    """A call of an operation, or a mark. Times are microseconds, as in the trace."""

    name: str
    start: float
    end: float
    shapes: str
    """Of its inputs, as `2 × [8, 512] [512, 64]`; those that are no tensors are left out."""
    number: int
    """By which the trace says what it has started on a GPU."""
    parent: "Span | None" = None
    kind: Kind = "outside operations"
    phase: Phase | None = None
    """None: in no recorded step."""

    @classmethod
    def of(cls, event: Event) -> "Span":
        arguments = event.get("args", {})
        shapes = _shapes_text(arguments.get("Input Dims", []))
        end = event["ts"] + event["dur"]
        return cls(event["name"], event["ts"], end, shapes, arguments.get("External id", -1))

    def put_into(self, parent: "Span | None") -> None:
        """Make it a part of `parent`, which tells what it is for."""
        self.parent = parent
        self.kind = kind_of(self.name, parent.kind if parent and parent.kind in WHOLE else None)
        outer = parent.phase if parent else None
        if outer is not None or self.name == STEP:
            self.phase = phase_of(self.name) or outer
        if parent is not None:
            self.end = min(self.end, parent.end)


@dataclass(frozen=True)
class Stretch:
    """A time in which the thread is in `span` and in nothing inside of it."""

    start: float
    end: float
    span: Span


@dataclass(frozen=True)
class Timeline:
    """What happens in recorded steps, in order of its start."""

    steps: list[Span]
    spans: list[Span]
    stretches: list[Stretch]

    def add(self, start: float, end: float, span: Span) -> None:
        if end > start and span.phase is not None:
            self.stretches.append(Stretch(start, end, span))


def timeline(events: Sequence[Event]) -> Timeline:
    """The line of the thread that the steps are on.

    Raises:
        ValueError: there is no step among the events.
    """
    line = Timeline([], [], [])
    inside: list[Span] = []
    now = 0.0
    for span in [*_of_training(events), None]:
        # What ends before the next thing begins, the innermost first; after the last one, everything.
        while inside and (span is None or inside[-1].end <= span.start):
            line.add(now, inside[-1].end, inside[-1])
            now = inside.pop().end
        if span is not None:
            if inside:
                line.add(now, span.start, inside[-1])
            now = span.start
            span.put_into(inside[-1] if inside else None)
            inside.append(span)
            if span.phase is not None:
                line.spans.append(span)
            if span.name == STEP:
                line.steps.append(span)
    return line


def _shapes_text(shapes: Sequence[Any]) -> str:
    texts = [_shape_text(shape) for shape in shapes if shape]
    runs = [(text, len(list(same))) for text, same in groupby(texts)]
    return " ".join(text if count == 1 else f"{count} × {text}" for text, count in runs)


def _shape_text(shape: list[Any]) -> str:
    """Of a tensor, or of a list of tensors."""
    if not isinstance(shape[0], list):
        return str(shape)
    return str(shape[0]) if len(shape) == 1 else f"{len(shape)} tensors"


def _of_training(events: Sequence[Event]) -> list[Span]:
    """In order of their start, the outer ones first. Collectives are in no order with the rest: a thread goes
    on while they are under way."""
    found = [event for event in events if event.get("cat") in SPANS]
    main = [event["tid"] for event in found if event["name"] == STEP]
    if not main:
        raise ValueError("the trace has no step")
    threads = {main[0], *(event["tid"] for event in found if event["name"].startswith(BACKWARD))}
    spans = [
        Span.of(event) for event in found if event["tid"] in threads and not COLLECTIVE.match(event["name"])
    ]
    return sorted(spans, key=lambda span: (span.start, -span.end))
