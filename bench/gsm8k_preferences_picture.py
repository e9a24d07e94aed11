"""The picture of `bench.gsm8k_preferences`: accuracy and margin over the steps, calibration at the end."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from llmscale.data.files import replace_file
from llmscale.data.label.agreement import wilson_interval
from llmscale.report.gather import gather, smoothed
from llmscale.report.pictures import COLOURS, MARKED, STYLE
from llmscale.runtime.events import Event

LABELS = {"reward": "reward model", "dpo": "DPO"}
ROUNDING = 1e-6
BINS = 5
"""Of confidence, from 1/2 to 1."""

Runs = Mapping[str, Sequence[Path]]


def draw(
    path: Path, runs: Runs, differences: Mapping[str, list[list[float]]], by_length: float, pairs: int
) -> None:
    """
    Args:
        runs: of each task, one a seed.
        differences: of each task and seed, of the held-out pairs at the end, in log odds.
        by_length: how often the longer answer is the right one.
        pairs: that are held out.
    """
    with plt.rc_context(STYLE):
        figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4.2))
        for (task, folders), colour in zip(runs.items(), COLOURS):
            _draw_figure(left, "accuracy", folders, colour, LABELS[task], pairs)
            _draw_figure(middle, "margin", folders, colour, LABELS[task])
            _draw_calibration(right, differences[task], colour, LABELS[task])
        left.axhline(by_length, color="#4b5563", linewidth=1, linestyle=":", label="the longer answer")
        left.set_title(f"Right above wrong, {pairs} held-out pairs")
        left.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        left.set_ylim(0.28, 1.02)
        middle.set_title("Margin, in log odds")
        right.plot([0.5, 1], [0.5, 1], color="#4b5563", linewidth=1, linestyle=":", label="as sure as right")
        right.set_title("How sure, how often right, at the end")
        right.set_xlabel("confidence")
        right.set_ylabel("accuracy")
        right.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        right.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        for axes, place in ((left, "lower right"), (middle, "upper left"), (right, "upper left")):
            axes.legend(fontsize=8, loc=place)
        with replace_file(path) as file:
            figure.savefig(file, format="png", dpi=130)
        plt.close(figure)


def _draw_figure(
    axes: Axes, name: str, folders: Sequence[Path], colour: str, label: str, pairs: int | None = None
) -> None:
    """Held-out: each seed pale, their mean marked, and where `pairs` is given its interval. Training:
    dashed."""
    found = [gather(folder) for folder in folders]
    validations = [[event for event in run.validations if tells_apart(metrics_of(event))] for run in found]
    steps = [event.step or 0 for event in validations[0]]
    seeds = [[metrics_of(event)[name] for event in curve] for curve in validations]
    means = [mean(column) for column in zip(*seeds)]
    for values in seeds:
        axes.plot(steps, values, color=colour, alpha=0.3, linewidth=1)
    axes.plot(steps, means, color=colour, label=f"{label}, held out", **MARKED)
    if pairs is not None:
        bounds = [wilson_interval(round(value * pairs), pairs) for value in means]
        low, high = zip(*bounds)
        axes.fill_between(steps, low, high, color=colour, alpha=0.12, linewidth=0)
    lines = [columns for columns in zip(*(run.metrics for run in found)) if all(map(tells_apart, columns))]
    training = smoothed([mean(line[name] for line in columns) for columns in lines])
    steps = [columns[0]["step"] for columns in lines]
    axes.plot(steps, training, color=colour, linestyle="--", linewidth=1.2, label=f"{label}, training")
    axes.set_xlabel("step")


def metrics_of(event: Event) -> dict[str, Any]:
    return event.details["metrics"]


def tells_apart(metrics: Mapping[str, Any]) -> bool:
    """Before the first step a model is its own reference, and no answer is above another."""
    return abs(metrics["margin"]) > ROUNDING


def _draw_calibration(axes: Axes, seeds: Sequence[Sequence[float]], colour: str, label: str) -> None:
    """Of all seeds together; the larger a mark, the more pairs."""
    sure = [(1 / (1 + math.exp(-abs(one))), one > 0) for differences in seeds for one in differences]
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(BINS)]
    for confidence, is_right in sure:
        bins[min(int((confidence - 0.5) * 2 * BINS), BINS - 1)].append((confidence, is_right))
    filled = [found for found in bins if found]
    confidences, rights = ([mean(one[place] for one in found) for found in filled] for place in (0, 1))
    axes.plot(confidences, rights, color=colour, linewidth=1.2, label=label)
    sizes = [400 * len(found) / len(sure) + 8 for found in filled]
    axes.scatter(confidences, rights, sizes, color=colour, zorder=3)
