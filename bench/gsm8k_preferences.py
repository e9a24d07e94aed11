"""What a reward model and DPO learn of real models' solutions to school maths, right ones against wrong ones.

    python -m bench.gsm8k_preferences PATH/gsm8k_preferences.jsonl --problems PATH/gsm8k_train.jsonl

The pairs are records {prompt, chosen, rejected}; those of one prompt are all trained on or all held out. Both
begin from a model of the demo's size that has read Python's standard library and then the problems {question,
answer}, whose prompts are others. All of it runs through the command line in folders under
bench/results/gsm8k: what is there is not made again, what was stopped goes on. What the held-out pairs are
told by is measured with transformers on the exported models, beside what needs no training. Prints tables and
writes docs/pictures/gsm8k_preferences.png.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

import torch

from bench.gsm8k_differences import (
    Pair,
    accuracy,
    asked_otherwise,
    balanced_accuracy,
    ended_otherwise,
    log_probability_differences,
    read_pairs,
    reward_differences,
)
from bench.gsm8k_preferences_picture import draw, metrics_of, tells_apart
from bench.gsm8k_stages import DATA, HELD_OUT, RUNS, fine_tune, once, pretrain, shortest_question, split
from llmscale.data.label.agreement import wilson_interval
from llmscale.run.demo import make_tokenizer_and_corpus
from llmscale.run.demo_stage import DemoFailed, llmscale
from llmscale.runtime.events import Event, read_events
from llmscale.runtime.metrics import Metrics, read_metrics

PREFERENCES = DATA / "preferences"
EXPORTED = RUNS / "exported"
PICTURE = Path("docs/pictures/gsm8k_preferences.png")

SFT_STEPS, SFT_ROWS = 250, 8
SEEDS = (1, 2, 3)
HELD_OUT_PROMPTS = 64
"""Of 256."""
SEQUENCE_LENGTH, ROWS = 1024, 8
EPOCHS, VALIDATE_EVERY = 3, 15
VALIDATION_BATCHES = 20
"""All held-out pairs."""
BETA = 0.1
THREADS = 1
"""Of transformers, which is given text by text: on cores with other work more of them wait for each other."""

TASKS = {
    "reward": ("configs/reward/tiny.yaml", "optimizer.lr=2e-4"),
    "dpo": ("configs/dpo/tiny.yaml", "optimizer.lr=5e-5", f"dpo.beta={BETA}"),
}

SHOWN = {"reward": "reward model", "dpo": "what DPO has changed of the log-probability, × beta"}

Differences = Mapping[str, list[list[float]]]
"""Of each scorer and seed: by how much it puts the right answer of each held-out pair above the wrong one."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("preferences", type=Path, help="jsonl with prompt, chosen and rejected")
    parser.add_argument("--problems", type=Path, required=True, help="jsonl with question and answer")
    given = parser.parse_args(arguments)
    try:
        compare(given.preferences, given.problems)
    except DemoFailed as failure:
        print(failure, file=sys.stderr)
        return 1
    return 0


def compare(preferences: Path, problems: Path) -> None:
    make_tokenizer_and_corpus()
    split(problems, "question", HELD_OUT, DATA)
    counts = split(preferences, "prompt", HELD_OUT_PROMPTS, PREFERENCES)
    start = fine_tune("sft", pretrain(), shortest_question(), SFT_STEPS, SFT_ROWS, "optimizer.lr=1e-3")
    runs = {task: [prefer(task, seed, start) for seed in SEEDS] for task in TASKS}
    pairs = read_pairs(PREFERENCES / "validation.jsonl")
    differences = measure(pairs, start, runs)
    print(f"\n{counts['train']:,} pairs to train on, {counts['validation']:,} held out\n")
    print_curves(runs)
    print_scorers(pairs, differences)
    print_probes(pairs, runs["reward"])
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    draw(PICTURE, runs, {task: differences[task] for task in TASKS}, accuracy(lengths(pairs)), len(pairs))
    print(f"\n{PICTURE}")


def prefer(task: str, seed: int, start: Path) -> Path:
    entry = "[{{path: {}, fields: {{instruction: prompt}}}}]"
    config, *options = TASKS[task]
    return once(
        f"{task}-{seed}",
        config,
        f"train.seed={seed}",
        f"train.init_from={start}",
        f"data.train={entry.format(PREFERENCES / 'train.jsonl')}",
        f"data.validation={entry.format(PREFERENCES / 'validation.jsonl')}",
        f"train.sequence_length={SEQUENCE_LENGTH}",
        f"train.global_batch_size={ROWS}",
        f"train.micro_batch_size={ROWS // 4}",
        f"train.epochs={EPOCHS}",
        f"train.validate_every={VALIDATE_EVERY}",
        f"train.validation_batches={VALIDATION_BATCHES}",
        "checkpoint.every=40",
        *options,
    )


def measure(pairs: Sequence[Pair], start: Path, runs: Mapping[str, Sequence[Path]]) -> Differences:
    """By the models as they are after the last step, and by what needs no training on pairs."""
    torch.set_num_threads(THREADS)
    known, tokens = log_probability_differences(export(start), pairs)
    tuned = [log_probability_differences(export(run), pairs)[0] for run in runs["dpo"]]
    return {
        "the longer answer": [lengths(pairs)],
        "log-probability, start": [known],
        "log-probability a token, start": [tokens],
        "reward": [reward_differences(export(run), pairs) for run in runs["reward"]],
        "log-probability, after DPO": tuned,
        "dpo": [[BETA * (after - before) for after, before in zip(one, known)] for one in tuned],
    }


def lengths(pairs: Sequence[Pair]) -> list[float]:
    return [float(len(pair.chosen) - len(pair.rejected)) for pair in pairs]


def export(run: Path) -> Path:
    folder = EXPORTED / run.name
    if not folder.exists():
        llmscale("checkpoint", "export", str(run), str(folder))
    return folder


def print_scorers(pairs: Sequence[Pair], differences: Differences) -> None:
    print("\n| told by | accuracy | 95 % interval | right one longer | shorter | mean of both | margin |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name, seeds in differences.items():
        share, spread = mean_share(seeds)
        low, high = wilson_interval(round(share * len(pairs)), len(pairs))
        by_length = [mean(column) for column in zip(*(balanced_accuracy(one, pairs) for one in seeds))]
        margin = mean(map(mean, seeds))
        cells = (f"{share:.3f}{spread}", f"{low:.3f} to {high:.3f}", *(f"{cell:.3f}" for cell in by_length))
        print(f"| {SHOWN.get(name, name)} | {' | '.join(cells)} | {margin:.2f} |")


def print_probes(pairs: Sequence[Pair], runs: Sequence[Path]) -> None:
    """What the reward models look at."""
    print("\n| reward model, at the end | accuracy | margin |")
    print("|---|---:|---:|")
    for name, changed in (
        ("to the prompt of another problem", asked_otherwise(pairs)),
        ("only the last line is of the wrong answer", ended_otherwise(pairs)),
    ):
        seeds = [reward_differences(export(run), changed) for run in runs]
        share, spread = mean_share(seeds)
        print(f"| {name} | {share:.3f}{spread} | {mean(map(mean, seeds)):.2f} |")


def mean_share(seeds: Sequence[Sequence[float]]) -> tuple[float, str]:
    """Accuracy, and that of each seed where there are several."""
    shares = [accuracy(one) for one in seeds]
    return mean(shares), "" if len(seeds) == 1 else f" ({', '.join(f'{share:.3f}' for share in shares)})"


def print_curves(runs: Mapping[str, Sequence[Path]]) -> None:
    """Means over the seeds."""
    print("| | step | held-out loss | accuracy | margin | calibration error | training accuracy |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for task, folders in runs.items():
        curves = [validations(run) for run in folders]
        best = [min(curve, key=lambda event: event.details["loss"]) for curve in curves]
        print_row(f"{task}, start", [curve[0] for curve in curves], "")
        print_row(f"{task}, lowest held-out loss", best, "")
        training = mean(line["accuracy"] for run in folders for line in last_epoch(run))
        print_row(f"{task}, end", [curve[-1] for curve in curves], f"{training:.3f}")


def print_row(name: str, events: Sequence[Event], training: str) -> None:
    found = [{"loss": event.details["loss"], **metrics_of(event)} for event in events]
    steps = sorted({event.step for event in events if event.step is not None})
    told = ("loss", "accuracy", "margin", "calibration_error") if all(map(tells_apart, found)) else ("loss",)
    cells = [
        f"{mean(one[key] for one in found):.3f}" if key in told and key in found[0] else ""
        for key in ("loss", "accuracy", "margin", "calibration_error")
    ]
    print(f"| {name} | {', '.join(map(str, steps))} | {' | '.join(cells)} | {training} |")


def validations(run: Path) -> list[Event]:
    return [event for event in read_events(run) if event.kind == "validated"]


def last_epoch(run: Path) -> list[Metrics]:
    lines = read_metrics(run)
    return lines[-(len(lines) // EPOCHS) :]


if __name__ == "__main__":
    sys.exit(main())
