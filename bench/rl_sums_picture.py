"""The picture of `bench.rl_sums`: held-out reward and divergence over the steps, and other placements."""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from llmscale.data.files import replace_file
from llmscale.report.gather import smoothed
from llmscale.report.pictures import COLOURS, MARKED, STYLE

LABELS = {
    "ppo": "PPO",
    "grpo": "GRPO",
    "apart": "all apart",
    "on-one": "all on one",
    "lora-apart": "LoRA, critic apart",
    "lora-on-one": "LoRA, all on one",
}
GREY = "#4b5563"

Results = dict[str, Any]


def draw(path: Path, results: Results) -> None:
    with plt.rc_context(STYLE):
        figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4.2))
        for (name, seeds), colour in zip(results["runs"].items(), COLOURS):
            _draw_rewards(left, LABELS[name], seeds, colour)
            _draw_divergence(middle, LABELS[name], seeds, colour)
        start = results["start"]
        for axes in (left, right):
            axes.axhline(
                start["best_of_n"],
                color=GREY,
                linestyle="--",
                linewidth=1,
                label=f"best of {start['n']} of the start",
            )
        left.axhline(
            results["constant"], color=GREY, linestyle=":", linewidth=1, label="the best constant answer"
        )
        least = -math.log(start["sampled"])
        middle.axhline(
            least, color=GREY, linestyle="--", linewidth=1, label="− log of the start's right answers"
        )
        left.set_title(f"Right answers, {results['held_out']} held-out sums")
        middle.set_title("Divergence from the start, nats an answer")
        _draw_placements(right, results)
        right.set_title("PPO, one seed, placed otherwise")
        for axes in (left, right):
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            axes.set_ylim(0, 1.02)
        for axes in (left, middle, right):
            axes.set_xlabel("step")
            axes.legend(fontsize=8, loc="lower right")
        with replace_file(path) as file:
            figure.savefig(file, format="png", dpi=130)
        plt.close(figure)


def _draw_rewards(axes: Axes, label: str, seeds: Sequence[Results], colour: str) -> None:
    """Each seed pale, their mean marked."""
    steps = seeds[0]["steps"]
    for run in seeds:
        axes.plot(steps, run["rewards"], color=colour, alpha=0.3, linewidth=1)
    means = [mean(column) for column in zip(*(run["rewards"] for run in seeds))]
    axes.plot(steps, means, color=colour, label=f"{label}, mean of {len(seeds)} seeds", **MARKED)


def _draw_divergence(axes: Axes, label: str, seeds: Sequence[Results], colour: str) -> None:
    for run in seeds:
        axes.plot(range(1, len(run["kl"]) + 1), run["kl"], color=colour, alpha=0.25, linewidth=0.8)
    means = smoothed([mean(column) for column in zip(*(run["kl"] for run in seeds))])
    axes.plot(range(1, len(means) + 1), means, color=colour, linewidth=2, label=label)


def _draw_placements(axes: Axes, results: Results) -> None:
    """Thinner and thinner: those that are equal lie on each other."""
    curves = {"critic apart": results["runs"]["ppo"][0]}
    curves |= {LABELS[name]: run for name, run in results["placements"].items()}
    for number, ((label, run), colour) in enumerate(zip(curves.items(), COLOURS)):
        width = 6 - 2 * (number % 3)
        axes.plot(run["steps"], run["rewards"], color=colour, linewidth=width, alpha=0.7, label=label)
