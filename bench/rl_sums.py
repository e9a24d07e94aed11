"""Reinforcement learning where success is known: sums that the start mostly gets wrong.

    python -m bench.rl_sums

A tiny model is fine-tuned on answers of which a quarter are right (`bench.rl_sums_data`). From there PPO
(actor, reference and critic) and GRPO (actor and reference) learn from a reward of 1 for the right number,
each with several seeds, on a real Ray with four worker processes. Sums that are asked in validation are
never trained on. Beside it: the best of as many answers of the start as training has of each prompt; the
best answer that is the same to everything; and PPO again with its models placed otherwise, whole and as LoRA.

All of it runs through the command line in folders under bench/results/rl_sums: what is there is not made
again, what was stopped goes on. Figures go to results.json there, the picture to docs/pictures/rl_sums.png.
Exit code 1 where what must hold does not.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from bench.rl_sums_answers import HeldOut
from bench.rl_sums_data import make
from bench.rl_sums_picture import draw
from bench.rounds import machine, write_json
from llmscale.run.demo_stage import DemoFailed, llmscale
from llmscale.runtime.events import read_events
from llmscale.runtime.metrics import read_metrics

RUNS = Path("bench/results/rl_sums")
START_CONFIG, CONFIG = "bench/rl_sums_start.yaml", "bench/rl_sums.yaml"
PICTURE = Path("docs/pictures/rl_sums.png")

SEEDS = (1, 2, 3)
ANSWERS = 8
"""To each prompt, in training and of the start to choose from."""
LOWEST_END, HIGHEST_START = 0.9, 0.3
LARGEST_KL = 2.5
"""Nats an answer from the start, as a mean over the last steps. Who gives only the start's right answers is
−log(its share of them) away: 1.6."""
MOST_KL = 4.0
"""In any step: what is rare at the start is learned before what is likely."""
LAST_STEPS = 10
EQUAL_STEPS = 10
"""At first, of which runs that differ by their placement must tell the same."""
TOLERANCE = 1e-3

ALGORITHMS: dict[str, tuple[str, ...]] = {
    "ppo": (
        "rlhf.algorithm=ppo",
        "rlhf.roles.critic.lr=1e-3",
        "rlhf.pools={a: {roles: [actor, reference], processes: 2}, c: {roles: [critic], processes: 2}}",
    ),
    "grpo": (),
}
PLACEMENTS: dict[str, str] = {
    "apart": "{a: {roles: [actor], processes: 2}, r: {roles: [reference]}, c: {roles: [critic]}}",
    "on-one": "{all: {roles: [actor, reference, critic], processes: 4}}",
}
"""Beside that of `ALGORITHMS`, which has the critic apart."""
LORA = ("peft={method: lora, rank: 8}", "optimizer.lr=2e-3")
LORA_PLACEMENTS: dict[str, str] = {
    "lora-apart": "{a: {roles: [actor], processes: 2}, c: {roles: [critic], processes: 2}}",
    "lora-on-one": "{all: {roles: [actor, critic], processes: 4}}",
}
"""The reference is the actor without its adapter."""

Results = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.parse_args(arguments)
    try:
        results = measure()
    except DemoFailed as failure:
        print(failure, file=sys.stderr)
        return 1
    write_json(RUNS / "results.json", results)
    draw(PICTURE, results)
    report(results)
    print(f"\n{PICTURE}")
    failures = faults(results)
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


def measure() -> Results:
    make(RUNS / "data")
    once("start", START_CONFIG)
    runs = {
        algorithm: [once(f"{algorithm}-{seed}", CONFIG, *options, f"train.seed={seed}") for seed in SEEDS]
        for algorithm, options in ALGORITHMS.items()
    }
    placed = {name: once(f"ppo-{name}", CONFIG, *of_placement(pools)) for name, pools in PLACEMENTS.items()}
    placed |= {
        name: once(f"ppo-{name}", CONFIG, *of_placement(pools), *LORA)
        for name, pools in LORA_PLACEMENTS.items()
    }
    best = once(
        f"best-of-{ANSWERS}",
        CONFIG,
        "rlhf.algorithm=best_of_n",
        f"data.train=[{RUNS / 'data' / 'held_out.jsonl'}]",
        "train.validate_every=null",
        "rlhf.pools={all: {roles: [actor], processes: 4}}",
    )
    held_out = HeldOut(Path(CONFIG))
    return {
        "machine": machine(),
        "held_out": len(held_out.prompts),
        "constant": held_out.best_constant(),
        "start": {**asked(held_out, RUNS / "start"), "best_of_n": best_reward(best), "n": ANSWERS},
        "runs": {name: [told(held_out, run) for run in seeds] for name, seeds in runs.items()},
        "placements": {name: told(held_out, run) for name, run in placed.items()},
    }


def of_placement(pools: str) -> tuple[str, ...]:
    """PPO with the first seed."""
    *options, _ = ALGORITHMS["ppo"]
    return (*options, f"rlhf.pools={pools}", f"train.seed={SEEDS[0]}")


def once(name: str, config: str, *overrides: str) -> Path:
    """The run of this name, trained to its end unless it is there."""
    run = RUNS / name
    if not any(event.kind == "finished" for event in read_events(run)):
        places = (f"run.root={RUNS}", f"run.name={name}", "logging.wandb=off")
        llmscale("train", config, *places, *overrides)
    return run


def asked(held_out: HeldOut, run: Path) -> dict[str, float]:
    """Mean rewards of a model, asked outside of its run: of drawn answers, and greedy."""
    return {
        "sampled": mean(map(mean, held_out.rewards(run, ANSWERS))),
        "greedy": mean(map(mean, held_out.rewards(run, temperature=0.0))),
    }


def told(held_out: HeldOut, run: Path) -> Results:
    """What a run says of itself, and its model at the end."""
    lines = read_metrics(run)
    validations = [event for event in read_events(run) if event.kind == "validated"]
    return {
        "steps": [event.step for event in validations],
        "rewards": [event.details["metrics"]["reward_mean"] for event in validations],
        "training_rewards": [line["reward_mean"] for line in lines],
        "kl": [line["kl_answer"] for line in lines],
        "losses": [line["loss"] for line in lines],
        "seconds": sum(line["step_seconds"] for line in lines),
        "first_ratio": lines[0]["first_ratio"],
        "largest_gap": max(line["rollout_gap"] for line in lines),
        **asked(held_out, run),
    }


def best_reward(run: Path) -> float:
    """Over all prompts of a run of best_of_n, of which a step has some."""
    lines = read_metrics(run)
    asked = [line["samples"] - before for line, before in zip(lines, [0, *(one["samples"] for one in lines)])]
    return sum(line["reward_best"] * count for line, count in zip(lines, asked)) / sum(asked)


def last_kl(run: Mapping[str, Any]) -> float:
    return mean(run["kl"][-LAST_STEPS:])


def faults(results: Results) -> list[str]:
    """What must hold and does not."""
    found: list[str] = []
    if results["start"]["sampled"] > HIGHEST_START or results["constant"] > HIGHEST_START / 3:
        found.append("the start, or a constant answer, is too good for this to be a proof")
    for algorithm, seeds in results["runs"].items():
        for seed, run in zip(SEEDS, seeds):
            if run["rewards"][-1] < LOWEST_END or run["sampled"] < LOWEST_END:
                found.append(f"{algorithm}, seed {seed}: {run['sampled']:.3f} is below {LOWEST_END}")
            if last_kl(run) > LARGEST_KL:
                found.append(f"{algorithm}, seed {seed}: KL {last_kl(run):.2f} is above {LARGEST_KL}")
            if max(run["kl"]) > MOST_KL:
                found.append(f"{algorithm}, seed {seed}: KL was {max(run['kl']):.2f}, above {MOST_KL}")
    for name, difference in differences(results).items():
        if difference > TOLERANCE:
            found.append(f"{name} tells something else: {difference:.2g}")
    return found


def differences(results: Results) -> dict[str, float]:
    """Of placements of the same models: the largest in what the first steps tell."""
    placements = results["placements"]
    same = dict.fromkeys(PLACEMENTS, results["runs"]["ppo"][0])
    same["lora-on-one"] = placements["lora-apart"]
    return {name: difference(placements[name], other) for name, other in same.items()}


def difference(one: Results, other: Results) -> float:
    return max(
        abs(ours - theirs)
        for name in ("training_rewards", "kl", "losses")
        for ours, theirs in zip(one[name][:EQUAL_STEPS], other[name][:EQUAL_STEPS])
    )


def report(results: Results) -> None:
    start = results["start"]
    print(f"\n{results['held_out']} held-out sums; the best constant answer gets {results['constant']:.3f}\n")
    print("| | at the start | at the end | greedy | 0.9 at step | KL | seconds |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    print(f"| start | {start['sampled']:.3f} | | {start['greedy']:.3f} | | 0 | |")
    print(f"| best of {start['n']} of the start | | {start['best_of_n']:.3f} | | | | |")
    rows = {
        f"{algorithm}, seed {seed}": run
        for algorithm, seeds in results["runs"].items()
        for seed, run in zip(SEEDS, seeds)
    }
    rows |= {f"ppo, {name}": run for name, run in results["placements"].items()}
    for name, run in rows.items():
        cells = (f"{run['rewards'][0]:.3f}", f"{run['sampled']:.3f}", f"{run['greedy']:.3f}", reached(run))
        print(f"| {name} | {' | '.join(cells)} | {last_kl(run):.2f} | {run['seconds']:.0f} |")
    print()
    for name, found in differences(results).items():
        print(f"{name}: differs by {found:.1e} in the first {EQUAL_STEPS} steps")


def reached(run: Results) -> str:
    """The first validation that is good enough."""
    steps = (step for step, reward in zip(run["steps"], run["rewards"]) if reward >= LOWEST_END)
    return str(next(steps, "never"))


if __name__ == "__main__":
    sys.exit(main())
