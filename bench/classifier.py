"""Which package of the standard library does a piece of source come from? Our classifier, from a pretrained
model and from scratch, beside the most frequent label and a logistic regression on bags of words.

    python bench/classifier.py                  # makes tokenizer, corpus, data and models
    python bench/classifier.py --pretrained RUN

All models are trained through the command line. Writes docs/pictures/classifier.png, and prints the table.
"""

import argparse
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmscale.data.tokenizer import open_encoder
from llmscale.objectives.classify import Classify
from llmscale.report.gather import gather
from llmscale.report.pictures import draw_confusion, render
from llmscale.run.demo import TOKENIZER, make_tokenizer_and_corpus
from llmscale.run.demo_data import FOLDER, write_classification

DATA = FOLDER / "classify"
RUNS = Path("bench/results/classifier")
PICTURE = Path("docs/pictures/classifier.png")
PRETRAINING = (
    "train.steps=400",
    "train.global_batch_size=8",
    "train.micro_batch_size=8",
    "train.validate_every=100",
    "optimizer.lr=2e-3",
    "optimizer.warmup_steps=40",
)
"""Small batches: of the same 0.8 million tokens many more steps, and the loss ends at 3.9 in place of 4.6."""
LAYOUT = ("parallel.tensor=1", "parallel.pipeline=1", "cluster.processes_per_node=1", "cluster.threads=1")
"""One rank: on a few cores quicker than what the configs show."""
PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2)
"""Of the squared weights of the logistic regression; the best on a tenth of the training data is taken."""
Records = list[dict[str, str]]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pretrained", type=Path, help="run to begin from, in place of a new one")
    options = parser.parse_args(arguments)
    make_tokenizer_and_corpus()
    counts = write_classification(DATA)
    training, validation = (read_records(split) for split in ("train", "validation"))
    labels = sorted({record["label"] for record in training})
    rows = {
        "most frequent label": most_frequent(training, validation, labels),
        "bag of words, logistic regression": bag_of_words(training, validation, labels),
    }
    begin = options.pretrained or pretrain()
    classified = classify("from-pretrained", f"train.init_from={begin}")
    rows |= {"ours, from scratch": classify("from-scratch"), "ours, pretrained": classified}
    print(f"\n{counts['train']:,} pieces to train on, {counts['validation']:,} of other files to tell\n")
    print(f"| {'':34} | accuracy | macro F1 |\n| {'-' * 34} | -------: | -------: |")
    for name, found in rows.items():
        print(f"| {name:34} | {found['accuracy']:8.1%} | {found['macro_f1']:8.3f} |")
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    PICTURE.write_bytes(render(draw_confusion, [gather(RUNS / "from-pretrained")], "png", (7.0, 6.0)))
    print(f"\n{PICTURE}")
    return 0


def read_records(split: str) -> Records:
    return [json.loads(line) for line in (DATA / f"{split}.jsonl").open()]


def pretrain() -> Path:
    """A model of the demo's size on the demo's corpus, made once."""
    run = RUNS / "pretrained"
    if not (run / "checkpoints").is_dir():
        llmscale("configs/pretrain/tiny.yaml", "pretrained", *PRETRAINING)
    return run


def classify(name: str, *overrides: str) -> dict[str, Any]:
    """What the last validation has found; the run is made once."""
    run = RUNS / name
    if not (run / "checkpoints").is_dir():
        llmscale("configs/classify/tiny.yaml", name, "train.micro_batch_size=16", *overrides)
    return gather(run).validations[-1].details["metrics"]


def llmscale(config: str, name: str, *overrides: str) -> None:
    places = [f"run.root={RUNS}", f"run.name={name}", *LAYOUT, "checkpoint.every=null", "logging.wandb=off"]
    command = [sys.executable, "-m", "llmscale", "train", config, *places, *overrides]
    print("$", *command[1:], flush=True)
    subprocess.run(command, check=True)


def figures(told: Sequence[int], true: Sequence[int], labels: Sequence[str]) -> dict[str, Any]:
    """By the same sums as our classifier's."""
    pairs = Counter(zip(true, told))
    sums = [float(pairs[a, b]) for a in range(len(labels)) for b in range(len(labels))]
    return dict(Classify(labels).metrics(sums))


def numbers(records: Records, labels: Sequence[str]) -> list[int]:
    return [labels.index(record["label"]) for record in records]


def most_frequent(training: Records, validation: Records, labels: Sequence[str]) -> dict[str, Any]:
    [(label, _)] = Counter(numbers(training, labels)).most_common(1)
    return figures([label] * len(validation), numbers(validation, labels), labels)


def bag_of_words(training: Records, validation: Records, labels: Sequence[str]) -> dict[str, Any]:
    """Logistic regression on how often each token is there, weighted by how rare it is (tf-idf)."""
    counts_ND, targets_N = counted(training), torch.tensor(numbers(training, labels))
    rarity_D = torch.log((1 + len(training)) / (1 + (counts_ND > 0).sum(0))) + 1
    inputs_ND, held_out = weighted(counts_ND, rarity_D), len(training) // 10
    scores = {
        penalty: accuracy(
            regression(inputs_ND[held_out:], targets_N[held_out:], len(labels), penalty),
            inputs_ND[:held_out],
            targets_N[:held_out],
        )
        for penalty in PENALTIES
    }
    best = max(scores, key=lambda penalty: scores[penalty])
    weights_LD = regression(inputs_ND, targets_N, len(labels), best)
    told_N = (weighted(counted(validation), rarity_D) @ weights_LD.T).argmax(-1)
    return figures(told_N.tolist(), numbers(validation, labels), labels)


def counted(records: Records) -> Tensor:
    """Tokens of our tokenizer, the last column always 1: [N records, D]."""
    encoder = open_encoder(TOKENIZER)
    found = torch.zeros(len(records), encoder.get_vocab_size())
    for row, text in zip(found, encoder.encode_batch([record["text"] for record in records])):
        row += torch.bincount(torch.tensor(text.ids), minlength=len(row))
    return found


def weighted(counts_ND: Tensor, rarity_D: Tensor) -> Tensor:
    inputs_ND = F.normalize(torch.log1p(counts_ND) * rarity_D, dim=1)
    return torch.cat((inputs_ND, torch.ones(len(inputs_ND), 1)), dim=1)


def regression(inputs_ND: Tensor, targets_N: Tensor, labels: int, penalty: float) -> Tensor:
    """Weights [L, D], by L-BFGS from 0."""
    weights_LD = torch.zeros(labels, inputs_ND.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weights_LD], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(inputs_ND @ weights_LD.T, targets_N) + penalty * weights_LD.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    return weights_LD.detach()


def accuracy(weights_LD: Tensor, inputs_ND: Tensor, targets_N: Tensor) -> float:
    return float(((inputs_ND @ weights_LD.T).argmax(-1) == targets_N).float().mean())


if __name__ == "__main__":
    sys.exit(main())
