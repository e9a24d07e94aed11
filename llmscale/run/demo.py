"""`make demo`: the whole path on real text, by the commands that a user would type.

Tokenizer, corpus, training on four ranks, a stop in the middle, the resume, a sample, a report; then
fine-tuning of that model on questions and answers, with all its weights and with LoRA; reinforcement learning
on a Ray. Tokenizer and corpus are made once; every demo trains in run folders of its own under `demo/runs/`,
and leaves its model in `demo/model`.
"""

import argparse
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rich.markup import escape
from rich.panel import Panel

from llmscale.config.load import load_config
from llmscale.control.exit_codes import EXIT_SAVED
from llmscale.run import demo_rlhf, demo_tuning
from llmscale.run.demo_data import FOLDER, NOT_LIBRARY, write_demo_data
from llmscale.run.demo_stage import DemoFailed, command, console, llmscale, once, show, stage
from llmscale.runtime.metrics import last_metrics, read_metrics

CONFIG = Path("configs/pretrain/tiny.yaml")
TOKENIZER = FOLDER / "tokenizer"
CORPUS = FOLDER / "corpus" / "stdlib"
MODEL = FOLDER / "model"
"""What the newest demo has pretrained, for the configs of fine-tuning to begin from."""
RUNS = FOLDER / "runs"

VOCABULARY = 8192
MEASURED_STEPS = 4
"""Steps of the trial run that tells how fast this machine is; the first is left out."""
FEWEST_STEPS, MOST_STEPS = 12, 400


@dataclass(frozen=True)
class Pace:
    """How long the demo's training is: so many steps, so many seconds each."""

    steps: int
    step_seconds: float

    @property
    def overrides(self) -> list[str]:
        quarter = max(1, self.steps // 4)
        return [
            f"train.steps={self.steps}",
            f"optimizer.warmup_steps={max(1, self.steps // 10)}",
            f"train.validate_every={quarter}",
            f"checkpoint.every={quarter}",
        ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0, help="how long to train")
    minutes: float = parser.parse_args(arguments).minutes
    try:
        demonstrate(minutes)
    except DemoFailed as failure:
        console.print(f"[bold red]The demo stopped:[/] {escape(str(failure))}")
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def demonstrate(minutes: float) -> None:
    began = time.perf_counter()
    make_tokenizer_and_corpus()
    stage("3", f"how fast is this machine: {MEASURED_STEPS} steps of {CONFIG}")
    name = time.strftime("%Y%m%d-%H%M%S")
    pace = measure_pace(minutes, f"{name}-trial")
    console.print(f"{pace.step_seconds:.2f} s a step: {pace.steps} steps for {minutes:g} minutes")
    run = RUNS / name
    training = ["train", str(CONFIG), f"run.root={RUNS}", f"run.name={name}", *pace.overrides]
    stage("4", "train on four ranks, tensor 2 × pipeline 2; stop it in the middle")
    stopped_at = train_and_stop(training, run, pace.steps // 2 + 1)
    stage("5", "the same command again goes on from there")
    llmscale(*training)
    check_steps(run, pace.steps)
    stage("6", "let the model write")
    llmscale("generate", str(run), "def ")
    stage("7", "curves as a page and a picture, and the model as a folder that transformers loads")
    llmscale("report", str(run))
    export(run)
    tuned = demo_tuning.fine_tune(MODEL, run, minutes, pace.step_seconds)
    own = run.with_name(f"{run.name}-{demo_rlhf.GRPO.stem}")
    reinforced = demo_rlhf.reinforce(tuned[0].run, own, minutes)
    told = [*(demo_tuning.told(one) for one in tuned), demo_rlhf.told(reinforced)]
    conclude(run, stopped_at, told, time.perf_counter() - began)


def make_tokenizer_and_corpus() -> None:
    text = [sysconfig.get_path("stdlib"), "--suffix", ".py"]
    for folder in NOT_LIBRARY:
        text += ["--exclude", folder]
    stage("1", f"a tokenizer of {VOCABULARY:,} entries, from Python's standard library")
    made = (TOKENIZER / "tokenizer.json").exists()
    once(made, "data", "tokenizer", *text, "--output", str(TOKENIZER), "--vocabulary-size", str(VOCABULARY))
    stage("2", "the corpus: that text as tokens, in Megatron's .bin / .idx")
    made = CORPUS.with_suffix(".idx").exists()
    once(made, "data", "tokenize", *text, "--tokenizer", str(TOKENIZER), "--output", str(CORPUS))
    write_demo_data()


def export(run: Path) -> None:
    """Leave the model where fine-tuning finds it, in place of an earlier demo's."""
    if MODEL.exists():
        shutil.rmtree(MODEL)
    llmscale("checkpoint", "export", str(run), str(MODEL))


def measure_pace(minutes: float, name: str) -> Pace:
    """How many steps fit into `minutes`, from a trial run without checkpoint or validation."""
    run = RUNS / name
    overrides = [f"train.steps={MEASURED_STEPS}", "optimizer.warmup_steps=1", "train.validate_every=null"]
    llmscale(
        "train", str(CONFIG), f"run.root={RUNS}", f"run.name={name}", *overrides, "checkpoint.every=null"
    )
    seconds = median(line["step_seconds"] for line in read_metrics(run)[1:])
    shutil.rmtree(run)
    steps = int(minutes * 60 / seconds)
    return Pace(min(max(steps, FEWEST_STEPS), MOST_STEPS), seconds)


def train_and_stop(training: Sequence[str], run: Path, step: int) -> int:
    """Start training, send SIGTERM once `step` is done; returns the step that was saved.

    Raises:
        DemoFailed: it ended before, or did not end with 75.
    """
    show(training)
    with subprocess.Popen(command(training)) as process:
        while process.poll() is None and last_step(run) < step:
            time.sleep(0.1)
        if process.poll() is None:
            console.print(
                f"\n[bold]SIGTERM after step {last_step(run)}[/], as a cluster sends at a time limit"
            )
            process.send_signal(signal.SIGTERM)
        code = process.wait()
    if code != EXIT_SAVED:
        raise DemoFailed(f"the stopped run ended with exit code {code}, not {EXIT_SAVED}; see {run / 'logs'}")
    console.print(f"saved at step {last_step(run)}, exit code {code}")
    return last_step(run)


def last_step(run: Path) -> int:
    line = last_metrics(run)
    return line["step"] if line else 0


def check_steps(run: Path, steps: int) -> None:
    """See that the metrics have each step once.

    Raises:
        DemoFailed: a step is missing, or stands there twice.
    """
    found = [line["step"] for line in read_metrics(run)]
    if found != list(range(1, steps + 1)):
        raise DemoFailed(f"{run / 'metrics.jsonl'} has steps {found}, not 1 to {steps}")


def conclude(run: Path, stopped_at: int, told: Sequence[str], seconds: float) -> None:
    """
    Args:
        told: of what came after pretraining.
    """
    metrics = read_metrics(run)
    first, last = metrics[0], metrics[-1]
    speed = median(line["tokens_per_second"] for line in metrics)
    ranks = load_config(CONFIG).world_size
    lines = (
        f"Made [b]{FOLDER}/[/]: a tokenizer of {VOCABULARY:,} entries and a corpus of Python's own source",
        f"{last['step']} steps, {last['tokens']:,} tokens: loss {first['loss']:.2f} → {last['loss']:.2f}, "
        f"{speed:,.0f} tokens/s on {ranks} ranks",
        f"Stopped after step {stopped_at} (exit {EXIT_SAVED}), resumed at {stopped_at + 1}: each step once",
        *told,
        f"Look at [b]{run}/report.html[/] and loss.png there; the model is in [b]{MODEL}/[/]",
        f"Next: [b]source .venv/bin/activate; llmscale train {CONFIG}[/]",
        f"      [b]llmscale train {demo_tuning.LORA}[/]",
        f"      [b]llmscale train {demo_rlhf.GRPO}[/]",
    )
    console.print()
    title = f"what happened, in {seconds / 60:.1f} minutes"
    console.print(Panel("\n".join(lines), title=title, border_style="green"))


if __name__ == "__main__":
    sys.exit(main())
