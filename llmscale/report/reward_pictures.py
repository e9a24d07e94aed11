"""Pictures of runs on rewards. Needs matplotlib (`pip install llmscale[report]`)."""

import math
from collections.abc import Iterator, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from llmscale.report.gather import RunData, known, smoothed
from llmscale.report.pictures import COLOURS, Draw
from llmscale.report.rewards import (
    OTHER,
    REWARD,
    held_out,
    reward_parts,
    seconds_of_parts,
)
from llmscale.runtime.parts import word

CUT_OFF, UNREWARDED, LEVEL = "#dc2626", "#9333ea", "#94a3b8"
ROOM = 1.08
"""How high an axis goes that begins at 0, relative to what it shows."""
OF_PARTS = {
    "rollout": "#2563eb",
    "rewards": "#ea580c",
    "knowing": "#059669",
    "learning": "#9333ea",
    "validating": "#ca8a04",
    "saving": "#0891b2",
    OTHER: "#cbd5e1",
}


def reward_pictures(runs: Sequence[RunData]) -> list[Draw]:
    """All but the reward itself, as far as the runs measure it."""
    return list(_pictures(runs))


def _pictures(runs: Sequence[RunData]) -> Iterator[Draw]:
    def some(name: str) -> bool:
        return any(run.is_ever(name) for run in runs)

    if len(runs) == 1 and len(reward_parts(runs[0])) > 1:
        yield draw_reward_parts
    if some("kl_answer"):
        yield _curve("kl_answer", "Divergence from the reference", "nats an answer")
    if any(len(set(known(run.column("kl_coefficient")))) > 1 for run in runs):
        yield _curve("kl_coefficient", "Weight of the divergence")
    if some("entropy"):
        yield _curve("entropy", "Entropy", "nats a token")
    if some("clip_share"):
        yield _curve("clip_share", "Clipped tokens", percent=True)
    if some("answer_tokens"):
        yield draw_lengths
    if some("rollout_gap"):
        yield _curve("rollout_gap", "Gap between rollout and trainer", "nats a token", logarithmic=True)
    if some("staleness"):
        yield _curve("staleness", "Age of the weights that answered", "steps")
    if some("critic_value_loss"):
        yield _curve("critic_value_loss", "Loss of the critic")
        yield draw_explained


def draw_reward(axes: Axes, runs: Sequence[RunData]) -> None:
    """Mean reward of every step (pale), its moving average, and of held-out prompts; of one run also that of
    the best answer to each prompt, where there are several."""
    for run, colour in zip(runs, COLOURS * len(runs)):
        if len(runs) == 1 and run.has("reward_best"):
            best, style = smoothed(run.column("reward_best")), {"linestyle": "--", "linewidth": 1.5}
            axes.plot(run.steps, best, color=COLOURS[2], label="best answer to a prompt", **style)
        _line(axes, runs, run, "reward_mean", colour)
    axes.set_title("Reward")


def draw_reward_parts(axes: Axes, runs: Sequence[RunData]) -> None:
    """Of the first run: what the reward is made of, each before its weight."""
    names = reward_parts(runs[0])
    for name, colour in zip(names, COLOURS * len(names)):
        values = smoothed(runs[0].column(name))
        axes.plot(runs[0].steps, values, color=colour, linewidth=2, label=name.removeprefix(REWARD))
    axes.set_title("Parts of the reward")


def draw_lengths(axes: Axes, runs: Sequence[RunData]) -> None:
    """Tokens of an answer; below, as an area, how many answers were cut off; and, if any, had no reward."""
    shares = axes.twinx()
    for run, colour in zip(runs, COLOURS * len(runs)):
        alone = len(runs) == 1
        label = "tokens" if alone else run.name
        axes.plot(run.steps, smoothed(run.column("answer_tokens")), color=colour, linewidth=2, label=label)
        for name, own, said in (
            ("truncated_share", CUT_OFF, "cut off"),
            ("unrewarded_share", UNREWARDED, "without reward"),
        ):
            if name == "truncated_share" or run.is_ever(name):
                values = smoothed(run.column(name))
                shares.fill_between(
                    run.steps, values, color=own if alone else colour, alpha=0.12, linewidth=0
                )
                style = {"linewidth": 1.2, "linestyle": "-" if own == CUT_OFF else ":"}
                shares.plot(run.steps, values, color=own if alone else colour, **style)
                # Only in the legend of the other axes, which is the one that is shown.
                axes.plot([], [], color=own if alone else colour, label=said if alone else None, **style)
    axes.set_ylim(0, ROOM * max(value for run in runs for value in known(run.column("answer_tokens"))))
    axes.set_ylabel("tokens an answer")
    shares.set_ylim(0, 1)
    shares.grid(False)
    shares.spines["right"].set_visible(True)
    shares.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    shares.set_ylabel("cut off")
    axes.set_title("Length of answers")


def draw_explained(axes: Axes, runs: Sequence[RunData]) -> None:
    """How much of what differs between returns the critic knows: 1 all, 0 no more than their mean."""
    for run, colour in zip(runs, COLOURS * len(runs)):
        _line(axes, runs, run, "critic_explained_variance", colour)
    axes.axhline(0, color=LEVEL, linewidth=1, zorder=1)
    axes.set_ylim(bottom=max(-1.0, axes.get_ylim()[0]), top=1)
    axes.set_title("Variance that the critic explains")


def draw_parts_of_steps(axes: Axes, runs: Sequence[RunData]) -> None:
    """Of the first run: how long steps took, and what of it each part; what comes now and then (validating,
    saving) is spread over the steps before."""
    run = runs[0]
    found = seconds_of_parts(run)
    order = [*(name for name in found if name != OTHER), OTHER]
    colours = [OF_PARTS.get(name, LEVEL) for name in order]
    labels = [word(name) for name in order]
    axes.stackplot(run.steps, *(smoothed(found[name]) for name in order), colors=colours, labels=labels)
    axes.set_xlim(run.steps[0], max(run.steps[-1], run.steps[0] + 1))
    axes.set_ylim(bottom=0)
    axes.set_ylabel("seconds")
    axes.set_axisbelow(True)
    # As they lie over each other, and beside what they name.
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), reverse=True)
    axes.set_title(f"Seconds of a step: {run.name}")


def _curve(
    name: str, title: str, unit: str = "", *, percent: bool = False, logarithmic: bool = False
) -> Draw:
    """A picture of one number."""

    def draw(axes: Axes, runs: Sequence[RunData]) -> None:
        for run, colour in zip(runs, COLOURS * len(runs)):
            _line(axes, runs, run, name, colour)
        if percent:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        values = [value for run in runs for value in run.column(name) if math.isfinite(value)]
        if logarithmic and any(value > 0 for value in values):
            axes.set_yscale("log")
            axes.set_ylim(*_decades([value for value in values if value > 0]))
        elif min(values, default=-1) >= 0:
            axes.set_ylim(0, ROOM * max(values))
        axes.set_ylabel(unit)
        axes.set_title(title)

    return draw


def _decades(values: Sequence[float]) -> tuple[float, float]:
    """Powers of ten that they lie between."""
    least, most = (math.log10(value) for value in (min(values), max(values)))
    return 10.0 ** math.floor(least), 10.0 ** (math.floor(most) + 1)


def _line(axes: Axes, runs: Sequence[RunData], run: RunData, name: str, colour: str) -> None:
    """Every step (pale), the moving average, and the points of held-out prompts."""
    prefix = f"{run.name}: " if len(runs) > 1 else ""
    steps, found = held_out(run, name)
    if run.has(name):
        values, label = run.column(name), f"{prefix}training" if steps else run.name
        axes.plot(run.steps, values, color=colour, alpha=0.25, linewidth=1)
        axes.plot(run.steps, smoothed(values), color=colour, linewidth=2, label=label)
    if steps:
        hollow = {"marker": "o", "markersize": 6, "markerfacecolor": "white", "markeredgewidth": 2}
        label = f"{prefix}held-out prompts"
        axes.plot(steps, found, color=colour, linestyle="none", label=label, **hollow)
