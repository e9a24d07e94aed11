"""Curves of runs. Needs matplotlib (`pip install llmscale[report]`)."""

import io
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, PercentFormatter

from llmscale.report.gather import RunData, smoothed

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

Draw = Callable[[Axes, Sequence[RunData]], None]


def render(draw: Draw, runs: Sequence[RunData], kind: str, size: tuple[float, float]) -> bytes:
    """The picture as `svg` or `png` bytes; `size` in inches."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=size)
        draw(axes, runs)
        axes.set_xlabel("step")
        if len(runs) > 1 or draw is draw_loss:
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
