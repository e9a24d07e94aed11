"""Pictures of profiles. Needs matplotlib (`pip install llmscale[report]`)."""

from collections.abc import Sequence

from matplotlib.axes import Axes

from llmscale.report.gather import RunData
from llmscale.report.pictures import Draw
from llmscale.runtime.profiling.breakdown import Breakdown
from llmscale.runtime.profiling.kinds import KINDS, Kind
from llmscale.runtime.profiling.phases import ORDER, Phase
from llmscale.runtime.profiling.tables import title

OF_KINDS: dict[Kind, str] = {
    "matrix products": "#2563eb",
    "attention": "#0891b2",
    "norms": "#059669",
    "activation": "#84cc16",
    "rotary positions": "#ca8a04",
    "embedding": "#a16207",
    "loss": "#ea580c",
    "element-wise and sums": "#f59e0b",
    "copies and casts": "#dc2626",
    "communication": "#9333ea",
    "optimizer": "#db2777",
    "other operations": "#64748b",
    "outside operations": "#cbd5e1",
}


def profile_picture(found: Breakdown) -> Draw:
    """A bar a phase of the step, as long as it takes, of the kinds of operations that it consists of."""

    def draw(axes: Axes, _: Sequence[RunData]) -> None:
        phases: list[Phase] = [phase for phase in ORDER if phase in found.seconds]
        reached = [0.0] * len(phases)
        for kind in KINDS:
            widths = [found.seconds[phase].get(kind, 0.0) * 1e3 for phase in phases]
            if any(widths):
                axes.barh(phases, widths, left=reached, color=OF_KINDS[kind], label=kind)
                reached = [before + width for before, width in zip(reached, widths)]
        axes.invert_yaxis()
        axes.grid(False, axis="y")
        axes.set_axisbelow(True)
        axes.set_xlabel("milliseconds a step")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        axes.set_title(title(found))

    return draw
