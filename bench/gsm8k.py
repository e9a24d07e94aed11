"""What fine-tuning on school maths gains, and what it forgets, four ways: all weights, all weights with
replay, all weights pulled to where they started, and LoRA.

    python -m bench.gsm8k PATH/gsm8k_train.jsonl     # records {question, answer}

A model of the demo's size reads Python's standard library first, then each way has the same number of
steps of the same size. All of it runs through the command line in folders under bench/results/gsm8k: what is
there is not made again, what was stopped goes on. Prints the table and writes docs/pictures/gsm8k.png.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from bench.gsm8k_stages import DATA, HELD_OUT, fine_tune, pretrain, shortest_question, split
from llmscale.data.checks import resolved_vocabulary_size
from llmscale.plan.parameters import model_parameters
from llmscale.report.gather import RunData, gather
from llmscale.report.pictures import COLOURS, render
from llmscale.report.validations import samples, trade
from llmscale.run.demo import CORPUS, make_tokenizer_and_corpus
from llmscale.run.demo_stage import DemoFailed
from llmscale.run.demo_tuning import outcome
from llmscale.runtime.events import read_events
from llmscale.runtime.metrics import read_metrics

PICTURE = Path("docs/pictures/gsm8k.png")

STEPS, ROWS = 100, 4

FULL = ("optimizer.lr=1e-3",)
WAYS: dict[str, tuple[str, ...]] = {
    "all weights": FULL,
    "with replay": (*FULL, f"data.replay={{corpus: {CORPUS}, share: 0.25}}"),
    "with distance penalty": (*FULL, "optimizer.distance_penalty=30"),
    "LoRA": ("optimizer.lr=5e-3", "peft.method=lora", "peft.rank=16", "peft.alpha=32"),
}
"""What each changes of `configs/sft/tiny.yaml`."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("problems", type=Path, help="jsonl with question and answer")
    problems: Path = parser.parse_args(arguments).problems
    try:
        compare(problems)
    except DemoFailed as failure:
        print(failure, file=sys.stderr)
        return 1
    return 0


def compare(problems: Path) -> None:
    make_tokenizer_and_corpus()
    counts = split(problems, "question", HELD_OUT, DATA)
    question = shortest_question()
    pretrained = pretrain()
    runs = {
        name: fine_tune(name.replace(" ", "-").lower(), pretrained, question, STEPS, ROWS, *changes)
        for name, changes in WAYS.items()
    }
    print(f"\n{counts['train']:,} problems to train on, {counts['validation']:,} held out\n")
    print_table(runs)
    print_answers(question, runs)
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    PICTURE.write_bytes(render(draw, [gather(run) for run in runs.values()], "png", (7.0, 4.5)))
    print(f"\n{PICTURE}")


def print_table(runs: dict[str, Path]) -> None:
    print("| | held-out loss | perplexity | forgetting score | trained | checkpoint | minutes |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    before = outcome(next(iter(runs.values()))).before
    print(f"| before | {before:.3f} | {math.exp(before):.1f} | 0 | | | |")
    for name, run in runs.items():
        tuned = outcome(run)
        cells = (
            f"{tuned.after:.3f}",
            f"{math.exp(tuned.after):.1f}",
            f"{tuned.forgotten:+.3f}",
            f"{trained(run) / 1e6:.2f} M",
            f"{tuned.checkpoint_bytes / 1e6:.1f} MB",
            f"{sum(line['step_seconds'] for line in read_metrics(run)) / 60:.1f}",
        )
        print(f"| {name} | {' | '.join(cells)} |")


def trained(run: Path) -> int:
    """Parameters that the run has trained."""
    told: list[dict[str, Any]] = [event.details for event in read_events(run) if event.kind == "tuned"]
    if told:
        return told[-1]["trained_parameters"]
    config = gather(run).config  # without PEFT: all that the model has
    vocabulary_size = resolved_vocabulary_size(config)
    return model_parameters(config.model, vocabulary_size, config.train.sequence_length).total


def print_answers(question: str, runs: dict[str, Path]) -> None:
    print(f"\nQuestion: {question}")
    for number, (name, run) in enumerate(runs.items()):
        [texts] = samples(gather(run)).values()
        if number == 0:
            print(f"\nBefore: {texts[0][1]}")
        print(f"\nAfter, {name}: {texts[-1][1]}")


def draw(axes: Axes, runs: Sequence[RunData]) -> None:
    """A line a way, from the pretrained model at the origin to the last step."""
    for name, run, colour in zip(WAYS, runs, COLOURS):
        found = trade(run)
        assert found is not None
        axes.plot(found.scores, found.gains, color=colour, linewidth=1.5, alpha=0.6)
        sizes = [20] * (len(found.steps) - 1) + [90]
        axes.scatter(found.scores, found.gains, sizes, color=colour, label=name, zorder=3)
    axes.set_xlabel("forgetting score: rise of the loss on held-out Python source")
    axes.set_ylabel("fall of the loss on held-out answers")
    axes.set_title(f"School maths, {STEPS} steps: what is gained, what is lost")


if __name__ == "__main__":
    sys.exit(main())
