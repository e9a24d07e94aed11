"""Draws docs/architecture.svg, the one picture of docs/architecture.md: `make docs`."""

from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

WIDTH, ROW, GAP = 100.0, 9.0, 1.6
LEFT, RIGHT = 13.0, 98.5
INK, FAINT, PAPER = "#1f2933", "#7b8794", "#ffffff"


@dataclass(frozen=True)
class Room:
    """A folder: its name, one line on what it does, and the library that it alone touches."""

    name: str
    does: str
    touches: str = ""


@dataclass(frozen=True)
class Floor:
    number: int
    title: str
    color: str
    rooms: tuple[Room, ...]


HOUSE = (
    Floor(
        5,
        "composition",
        "#e8dff5",
        (
            Room("cli.py  commands/", "what a user types"),
            Room("run/", "one short file a task; puts the rest together"),
        ),
    ),
    Floor(
        4,
        "loops",
        "#fce1e4",
        (
            Room("train/", "step, validate, save, stop when asked"),
            Room("report/", "curves and tables of runs", "matplotlib"),
        ),
    ),
    Floor(
        3,
        "machinery",
        "#fcf4dd",
        (
            Room("engine/", "one optimizer step", "deepspeed · megatron schedules"),
            Room("checkpoint/", "commit, verify, load", "safetensors"),
            Room("runtime/", "agents, links, metrics", "wandb"),
        ),
    ),
    Floor(
        2,
        "substance",
        "#ddedea",
        (
            Room("model/", "GPTModel, own layers", "megatron models"),
            Room("objectives/", "sum of losses, count"),
            Room("data/", "corpus, order, batches", "megatron datasets"),
        ),
    ),
    Floor(
        1,
        "ranks",
        "#daeaf6",
        (
            Room("parallel/", "World: layout, RNG, device", "megatron parallel_state"),
            Room("control/", "who runs, hangs, goes again", "pure · no torch"),
            Room("plan/", "memory, FLOPs, on paper", "no torch"),
            Room("launcher/", "local, SLURM, Ray", "ray · no torch"),
        ),
    ),
    Floor(
        0,
        "ground",
        "#e4e7eb",
        (
            Room("config/", "schema, loading, rules", "pydantic · no torch"),
            Room("kernels/", "one op a file: norm, rotary, swiglu, loss", "torch · triton on GPUs"),
        ),
    ),
)


def draw_room(axes: Axes, room: Room, left: float, bottom: float, width: float) -> None:
    axes.add_patch(
        FancyBboxPatch(
            (left, bottom),
            width,
            ROW - 2.2,
            boxstyle="round,pad=0,rounding_size=0.7",
            facecolor=PAPER,
            edgecolor=FAINT,
            linewidth=0.8,
        )
    )
    middle, top = left + width / 2, bottom + ROW - 2.2
    axes.text(
        middle, top - 1.6, room.name, ha="center", va="center", family="monospace", weight="bold", size=10.5
    )
    axes.text(middle, top - 3.6, room.does, ha="center", va="center", size=8.6)
    if room.touches:
        axes.text(
            middle, top - 5.4, room.touches, ha="center", va="center", size=7.6, color=FAINT, style="italic"
        )


def draw_floor(axes: Axes, floor: Floor, bottom: float) -> None:
    axes.add_patch(
        FancyBboxPatch(
            (1.0, bottom - 1.1),
            WIDTH - 2,
            ROW,
            boxstyle="round,pad=0,rounding_size=0.9",
            facecolor=floor.color,
            edgecolor="none",
        )
    )
    axes.text(2.4, bottom + 4.3, str(floor.number), va="center", size=17, weight="bold", color=INK)
    axes.text(2.4, bottom + 1.2, floor.title, va="center", size=8.2, color=INK)
    width = (RIGHT - LEFT - GAP * (len(floor.rooms) - 1)) / len(floor.rooms)
    for index, room in enumerate(floor.rooms):
        draw_room(axes, room, LEFT + index * (width + GAP), bottom, width)


def draw() -> Figure:
    height = len(HOUSE) * (ROW + 1) + 4
    figure = Figure(figsize=(WIDTH / 10, height / 10))
    axes = figure.add_axes((0.0, 0.0, 0.97, 1.0))
    axes.set(xlim=(0, WIDTH + 3), ylim=(0, height))
    axes.axis("off")
    for index, floor in enumerate(reversed(HOUSE)):
        draw_floor(axes, floor, 4.5 + index * (ROW + 1))
    axes.add_patch(
        FancyArrowPatch(
            (WIDTH + 1.2, height - 3),
            (WIDTH + 1.2, 5),
            arrowstyle="-|>",
            mutation_scale=13,
            color=INK,
            lw=1.3,
        )
    )
    axes.text(
        WIDTH + 2.6, height / 2, "imports go down only", rotation=270, ha="center", va="center", size=8.6
    )
    axes.text(1.2, 1.4, "In italics: what this folder alone touches, or does without.", size=8, color=FAINT)
    return figure


def main() -> None:
    mpl.rcParams.update({"font.family": "DejaVu Sans", "text.color": INK, "svg.hashsalt": "llmscale"})
    target = Path(__file__).with_suffix(".svg")
    draw().savefig(target, metadata={"Date": None}, facecolor=PAPER)
    print(f"wrote {target.name}")


if __name__ == "__main__":
    main()
