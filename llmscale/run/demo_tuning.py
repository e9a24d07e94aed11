"""The second half of the demo: its model learns to answer, once with all its weights and once with LoRA."""

from dataclasses import dataclass
from pathlib import Path

from llmscale.checkpoint.errors import CheckpointError
from llmscale.checkpoint.store import locate
from llmscale.run.demo_stage import DemoFailed, console, llmscale, stage
from llmscale.runtime.events import read_events

SFT = Path("configs/sft/tiny.yaml")
LORA = Path("configs/sft/tiny_lora.yaml")
SHARE = {SFT: 0.25, LORA: 0.15}
"""Of the time of pretraining, that each takes."""
COST = 1.2
"""Of a step, in steps of pretraining: as many tokens, and a validation now and then."""
FEWEST_STEPS, MOST_STEPS = 8, 200
VALIDATION_BATCHES = 2
QUESTION = "What does this function do?\ndef remove_spaces(text):"


@dataclass(frozen=True)
class Tuned:
    """What came of a fine-tuning."""

    run: Path
    before: float
    """Validation loss of the model that it began with."""
    after: float
    forgotten: float
    """By how much the loss on held-out pretraining text has risen."""
    checkpoint_bytes: int


def fine_tune(model: Path, run: Path, minutes: float, step_seconds: float) -> list[Tuned]:
    """Stages 8 to 10 of the demo.

    Args:
        model: what is tuned, a Hugging Face folder.
        run: the pretraining's folder; those of the two runs get its name with an ending.
        minutes: how long pretraining took.
        step_seconds: of pretraining.
    """
    stage("8", "conversations to learn from: what is green is learned")
    llmscale("data", "inspect", str(SFT), "-n", "2")
    tuned: list[Tuned] = []
    for number, title, config in (
        ("9", "supervised fine-tuning of all weights, tensor 2 × data 2, ZeRO-2", SFT),
        ("10", "the same with LoRA: a few weights beside those of the model", LORA),
    ):
        stage(number, title)
        own = run.with_name(f"{run.name}-{config.stem}")
        llmscale("train", str(config), *overrides(model, own, steps_for(config, minutes, step_seconds)))
        llmscale("generate", str(own), "--chat", QUESTION, "--greedy", "--max-new-tokens", "40")
        llmscale("report", str(own))
        tuned.append(outcome(own))
        console.print(told(tuned[-1]))
    return tuned


def steps_for(config: Path, minutes: float, step_seconds: float) -> int:
    steps = int(minutes * 60 * SHARE[config] / (COST * step_seconds))
    return min(max(steps, FEWEST_STEPS), MOST_STEPS)


def overrides(model: Path, run: Path, steps: int) -> list[str]:
    """Of the config, for a demo of so many steps."""
    return [
        f"train.init_from={model}",
        f"run.root={run.parent}",
        f"run.name={run.name}",
        f"train.steps={steps}",
        f"optimizer.warmup_steps={max(1, steps // 10)}",
        f"train.validate_every={max(1, steps // 2)}",
        f"train.validation_batches={VALIDATION_BATCHES}",
    ]


def outcome(run: Path) -> Tuned:
    """Told from what the run has left.

    Raises:
        DemoFailed: it has left no checkpoint.
    """
    validated = [event.details for event in read_events(run) if event.kind == "validated"]
    try:
        committed = [found for found in locate(run) if found.state == "committed"]
    except CheckpointError as error:
        raise DemoFailed(str(error)) from None
    size = sum(file.stat().st_size for file in committed[-1].path.rglob("*") if file.is_file())
    first, last = validated[0], validated[-1]
    return Tuned(run, first["loss"], last["loss"], last["forgetting"]["score"], size)


def told(tuned: Tuned) -> str:
    return (
        f"{tuned.run.name}: held-out answers {tuned.before:.2f} → {tuned.after:.2f}, "
        f"pretraining text {tuned.forgotten:+.2f}, checkpoint {tuned.checkpoint_bytes / 1e6:.1f} MB"
    )
