"""The end of the demo: the fine-tuned model goes on with functions, and is rewarded where that is Python."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from llmscale.run.demo_stage import DemoFailed, console, llmscale, stage
from llmscale.runtime.events import read_events

GRPO = Path("configs/rlhf/tiny_grpo.yaml")
STEPS_A_MINUTE = 8
"""Of pretraining."""
FEWEST_STEPS, MOST_STEPS = 2, 16

Answers = Sequence[Mapping[str, Any]]
"""{prompt, text, reward} each."""


@dataclass(frozen=True)
class Reinforced:
    """What came of the rewards."""

    run: Path
    before: float
    """Mean reward of answers to held-out prompts, of the model that it began with."""
    after: float
    answers_before: Answers
    answers_after: Answers
    """To the same prompts."""


def reinforce(start: Path, run: Path, minutes: float) -> Reinforced:
    """Stage 11 of the demo.

    Args:
        start: the run whose model learns.
        run: its own folder.
        minutes: how long pretraining took.
    """
    stage("11", "reinforcement learning: GRPO on a Ray, a reward for what is Python")
    llmscale("train", str(GRPO), *overrides(start, run, steps_for(minutes)))
    llmscale("report", str(run))
    reinforced = outcome(run)
    console.print(table(reinforced))
    console.print(told(reinforced))
    return reinforced


def steps_for(minutes: float) -> int:
    return min(max(int(STEPS_A_MINUTE * minutes), FEWEST_STEPS), MOST_STEPS)


def overrides(start: Path, run: Path, steps: int) -> list[str]:
    """Of the config, for a demo of so many steps."""
    return [
        f"train.init_from={start}",
        f"run.root={run.parent}",
        f"run.name={run.name}",
        f"train.steps={steps}",
        f"train.validate_every={max(1, steps // 2)}",
    ]


def outcome(run: Path) -> Reinforced:
    """Told from what the run has left.

    Raises:
        DemoFailed: it has not been validated before and after.
    """
    validated = [event.details for event in read_events(run) if event.kind == "validated"]
    if len(validated) < 2:
        raise DemoFailed(f"{run / 'events.jsonl'} tells of {len(validated)} validations, not of two or more")
    first, last = validated[0], validated[-1]
    return Reinforced(run, first["reward"], last["reward"], first["samples"], last["samples"])


def table(reinforced: Reinforced) -> Table:
    """The same prompts before and after, each answer with its reward."""
    shown = Table("before", "reward", "after", "reward", show_lines=True)
    for before, after in zip(reinforced.answers_before, reinforced.answers_after, strict=True):
        cells = [(_program(one), f"{one['reward']:g}") for one in (before, after)]
        shown.add_row(*(escape(cell) for pair in cells for cell in pair))
    return shown


def _program(answer: Mapping[str, Any]) -> str:
    return answer["prompt"] + answer["text"]


def told(reinforced: Reinforced) -> str:
    return (
        f"{reinforced.run.name}: held-out answers that are Python "
        f"{reinforced.before:.0%} → {reinforced.after:.0%}"
    )
