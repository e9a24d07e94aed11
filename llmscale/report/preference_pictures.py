"""Pictures of runs on preferences. Needs matplotlib (`pip install llmscale[report]`)."""

import math
from collections.abc import Iterator, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from llmscale.report.gather import RunData, smoothed
from llmscale.report.pictures import COLOURS, Draw
from llmscale.report.preferences import SIDES, Sides, calibration, measures, over_steps, over_validations
from llmscale.report.validations import readable

CHOSEN, REJECTED, LEVEL = "#059669", "#dc2626", "#94a3b8"


def preference_pictures(runs: Sequence[RunData]) -> list[Draw]:
    """Accuracy, both sides of what is compared, and KL, as far as the runs measure them."""
    return list(_pictures(runs))


def _pictures(runs: Sequence[RunData]) -> Iterator[Draw]:
    def some(name: str) -> bool:
        return any(measures(run, name) for run in runs)

    if some("accuracy"):
        yield draw_accuracy
    if len(runs) > 1 and some("margin"):
        yield draw_margin
    yield from (_sides(sides) for sides in SIDES if some(sides.chosen))
    if some("kl"):
        yield draw_kl


def draw_accuracy(axes: Axes, runs: Sequence[RunData]) -> None:
    """How often the chosen answer is the one that the model finds better."""
    for run, colour in zip(runs, COLOURS * len(runs)):
        _line(axes, run, "accuracy", colour, _names(runs, run))
    axes.axhline(0.5, color=LEVEL, linestyle=":", linewidth=1.2, zorder=1)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_title("Accuracy")


def draw_margin(axes: Axes, runs: Sequence[RunData]) -> None:
    """Chosen less rejected: of several runs their distance says more than where either lies."""
    for run, colour in zip(runs, COLOURS * len(runs)):
        _line(axes, run, "margin", colour, _names(runs, run))
    axes.axhline(0, color=LEVEL, linewidth=1, zorder=1)
    axes.set_title("Margin")


def draw_kl(axes: Axes, runs: Sequence[RunData]) -> None:
    for run, colour in zip(runs, COLOURS * len(runs)):
        _line(axes, run, "kl", colour, _names(runs, run))
    axes.axhline(0, color=LEVEL, linewidth=1, zorder=1)
    axes.set_ylabel("nats an answer")
    axes.set_title(readable("kl"))


def _sides(sides: Sides) -> Draw:
    """Chosen answers above rejected ones, and their distance, the margin, as an area."""

    def draw(axes: Axes, runs: Sequence[RunData]) -> None:
        alone = len(runs) == 1
        for run, colour in zip(runs, COLOURS * len(runs)):
            prefix = "" if alone else f"{run.name}: "
            for name, own, style, word in (
                (sides.chosen, CHOSEN, "-", "chosen"),
                (sides.rejected, REJECTED, "--", "rejected"),
            ):
                names = (f"{prefix}{word}", None)
                _line(axes, run, name, own if alone else colour, names, style, sides.is_compared)
            if alone and sides.is_compared:
                _margin(axes, run, sides)
        axes.set_ylabel(sides.unit)
        axes.set_title(sides.title)

    return draw


def _margin(axes: Axes, run: RunData, sides: Sides) -> None:
    steps, chosen = over_validations(run, sides.chosen)
    others, rejected = over_validations(run, sides.rejected)
    if steps and steps == others:
        axes.fill_between(steps, rejected, chosen, color=LEVEL, alpha=0.15, linewidth=0)


def _names(runs: Sequence[RunData], run: RunData) -> tuple[str, str | None]:
    """Of a line and of the points on it, in the legend."""
    return ("training", "validation") if len(runs) == 1 else (run.name, None)


def _line(
    axes: Axes,
    run: RunData,
    name: str,
    colour: str,
    names: tuple[str, str | None],
    style: str = "-",
    with_steps: bool = True,
) -> None:
    """The moving average over the steps, pale, and the validations on top of it.

    Args:
        names: of the line and of the points in the legend; None: they have one together.
        with_steps: where there are validations, too.
    """
    of_line, of_points = names
    steps, values = over_validations(run, name)
    trained, found = over_steps(run, name)
    if trained and (with_steps or not steps):
        label = of_line if of_points or not steps else None
        axes.plot(trained, smoothed(found), color=colour, alpha=0.35, linewidth=1.5, label=label)
    if steps:
        label = of_points or of_line
        joined = {"linestyle": style, "linewidth": 2, "marker": "o", "markersize": 5}
        axes.plot(steps, values, color=colour, markerfacecolor="white", label=label, **joined)


def draw_calibration(axes: Axes, runs: Sequence[RunData]) -> None:
    """Of the first run: how often it is right among comparisons of which it is sure to some degree. What lies
    below the diagonal is surer than it should be."""
    found = calibration(runs[0])
    assert found is not None
    axes.plot([0.5, 1], [0.5, 1], color=LEVEL, linestyle=":", linewidth=1.5, zorder=1)
    whole = sum(one.count for one in found.bins)
    for one in found.bins:
        axes.vlines(one.confidence, one.confidence, one.accuracy, color=REJECTED, alpha=0.35, linewidth=3)
        size = 30 + 500 * one.count / whole
        axes.scatter(one.confidence, one.accuracy, s=size, color=COLOURS[0], zorder=3)
        # On the side where the line is not.
        away = math.copysign(8 + math.sqrt(size / math.pi), one.accuracy - one.confidence)
        axes.annotate(
            f"{one.count:,.0f}",
            (one.confidence, one.accuracy),
            xytext=(0, away),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=9,
            color="#475569",
        )
    axes.text(0.98, 0.04, "surer than right", transform=axes.transAxes, ha="right", color=LEVEL)
    axes.text(0.02, 0.93, "more right than sure", transform=axes.transAxes, color=LEVEL)
    axes.set_xlim(0.48, 1.02)
    axes.set_ylim(min(0.45, *(one.accuracy - 0.08 for one in found.bins)), 1.08)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel("how sure the model is")
    axes.set_ylabel("how often it is right")
    axes.set_title(f"Calibration at step {found.step}: expected error {found.error:.1%}")
