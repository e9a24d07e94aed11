"""Curves of runs. Needs matplotlib (`pip install llmscale[report]`)."""

import io
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from llmscale.report.gather import RunData, smoothed
from llmscale.report.validations import confusion, numbers, readable, trade

COLOURS = ("#2563eb", "#ea580c", "#059669", "#9333ea", "#dc2626", "#0891b2", "#ca8a04", "#4b5563")
STYLE: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#94a3b8",
    "axes.labelcolor": "#334155",
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlecolor": "#0f172a",
    "axes.grid": True,
    "grid.color": "#e2e8f0",
    "xtick.color": "#475569",
    "ytick.color": "#475569",
    "font.size": 10,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "figure.constrained_layout.use": True,
}

MARKED: Any = {"linewidth": 2, "marker": "o", "markersize": 5}
"""A line through what was measured now and then."""
MOST_WITH_COUNTS = 15
"""Labels whose counts can be read in a picture."""

Draw = Callable[[Axes, Sequence[RunData]], None]


def render(
    draw: Draw | Sequence[Draw], runs: Sequence[RunData], kind: str, size: tuple[float, float]
) -> bytes:
    """The picture as `svg` or `png` bytes; `size` in inches. Several are panels of one, two in a row."""
    drawn = [draw] if callable(draw) else list(draw)
    with plt.rc_context(STYLE):
        columns = min(2, len(drawn))
        figure, grid = plt.subplots(-(-len(drawn) // columns), columns, figsize=size, squeeze=False)
        for place, axes in enumerate(grid.flat):
            if place >= len(drawn):
                axes.remove()
                continue
            drawn[place](axes, runs)
            if not axes.get_xlabel():
                axes.set_xlabel("step")
                axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))
            # What is there once needs no name.
            if axes.get_legend() is None and len(axes.get_legend_handles_labels()[0]) > 1:
                axes.legend()
        buffer = io.BytesIO()
        # Without a date the same run gives the same bytes.
        metadata = {"Date": ""} if kind == "svg" else {}
        figure.savefig(buffer, format=kind, dpi=160, metadata=metadata)
        plt.close(figure)
    return buffer.getvalue()


def draw_loss(axes: Axes, runs: Sequence[RunData]) -> None:
    """Loss of every step (pale), its moving average, validation points, and where the run resumed."""
    for run, colour in zip(runs, COLOURS * len(runs)):
        prefix = f"{run.name}: " if len(runs) > 1 else ""
        loss = run.column("loss")
        axes.plot(run.steps, loss, color=colour, alpha=0.25, linewidth=1)
        axes.plot(run.steps, smoothed(loss), color=colour, linewidth=2, label=f"{prefix}training")
        if run.validations:
            axes.plot(
                [event.step or 0 for event in run.validations],
                [event.details["loss"] for event in run.validations],
                color=colour,
                linestyle="none",
                marker="o",
                markersize=6,
                markerfacecolor="white",
                markeredgewidth=2,
                label=f"{prefix}validation",
            )
        resumed = [event.step for event in run.events if event.kind == "resumed"]
        for index, step in enumerate(resumed):
            label = "resumed" if index == 0 and len(runs) == 1 else None
            axes.axvline(step or 0, color=colour, linestyle=":", linewidth=1.2, label=label)
    axes.set_title("Loss")


def draw_trade(axes: Axes, runs: Sequence[RunData]) -> None:
    """What was won on the task (full) and what was lost of before (dashed), of runs that measure both."""
    for run, colour in zip(runs, COLOURS * len(runs)):
        found = trade(run)
        if found is None:
            continue
        prefix = f"{run.name}: " if len(runs) > 1 else ""
        axes.plot(found.steps, found.gains, color=colour, label=f"{prefix}gain on the task", **MARKED)
        other = colour if len(runs) > 1 else COLOURS[1]
        label = f"{prefix}forgetting score"
        axes.plot(found.steps, found.scores, color=other, linestyle="--", label=label, **MARKED)
    axes.axhline(0, color="#94a3b8", linewidth=1, zorder=1)
    axes.set_ylabel("difference of the loss")
    axes.set_title("Task against forgetting")


def validation_curve(name: str) -> Draw:
    """A picture of one metric over the validations."""

    def draw(axes: Axes, runs: Sequence[RunData]) -> None:
        for run, colour in zip(runs, COLOURS * len(runs)):
            events = [event for event in run.validations if name in numbers(event)]
            values = [numbers(event)[name] for event in events]
            steps = [event.step or 0 for event in events]
            axes.plot(steps, values, color=colour, label=run.name, **MARKED)
        axes.set_title(f"{readable(name)} (validation)")

    return draw


def draw_confusion(axes: Axes, runs: Sequence[RunData]) -> None:
    """Of the first run: a row a true label, coloured by its share of the row, with the counts."""
    found = confusion(runs[0])
    assert found is not None
    shares = [[count / max(sum(row), 1) for count in row] for row in found.counts]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    places = range(len(found.labels))
    axes.set_xticks(places, found.labels, rotation=45 if len(places) > 4 else 0)
    axes.set_yticks(places, found.labels)
    axes.grid(False)
    if len(places) <= MOST_WITH_COUNTS:
        for row in places:
            for column in places:
                colour = "white" if shares[row][column] > 0.5 else "#0f172a"
                text = str(found.counts[row][column])
                axes.text(column, row, text, ha="center", va="center", color=colour)
    axes.set_xlabel("label that was given")
    axes.set_ylabel("true label")
    axes.set_title(f"Confusion at step {found.step}")


def curve(key: str, title: str, percent: bool = False) -> Draw:
    """A picture of one column."""

    def draw(axes: Axes, runs: Sequence[RunData]) -> None:
        for run, colour in zip(runs, COLOURS * len(runs)):
            axes.plot(run.steps, run.column(key), color=colour, linewidth=1.5, label=run.name)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0) if percent else EngFormatter(sep=""))
        axes.set_ylim(bottom=0)
        axes.set_title(title)

    return draw


CURVES: dict[str, Draw] = {
    "tokens_per_second": curve("tokens_per_second", "Tokens a second"),
    "mfu": curve("mfu", "Model FLOPs utilisation", percent=True),
    "grad_norm": curve("grad_norm", "Gradient norm"),
    "lr": curve("lr", "Learning rate"),
}
"""Column -> its picture, beside the loss."""
