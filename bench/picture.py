"""Grouped bars as a PNG."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (the backend must be chosen first)

COLOURS = ["#2f6f9f", "#b0b7bf", "#d98c3f", "#6a9f58"]


def draw_bars(path: Path, title: str, groups: list[str], series: dict[str, list[float]]) -> None:
    """One group of bars a name in `groups`, one bar a series, labelled in per cent."""
    figure, axes = plt.subplots(figsize=(1.6 * len(groups) + 2.5, 4))
    width = 0.8 / len(series)
    for index, (name, values) in enumerate(series.items()):
        places = [group + (index - (len(series) - 1) / 2) * width for group in range(len(groups))]
        bars = axes.bar(places, values, width, label=name, color=COLOURS[index])
        axes.bar_label(bars, labels=[f"{value:.0%}" for value in values], fontsize=8)
    axes.set_xticks(range(len(groups)), groups)
    axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0, decimals=0))  # pyright: ignore[reportAttributeAccessIssue]
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, fontsize=11)
    if len(series) > 1:
        axes.legend(frameon=False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
