"""Output layer and loss, forward and backward: what it takes in memory and time.

    python -m bench.loss [--vocabulary V] [--tokens T] [--hidden H] [--threads N] [--turns N]

float32, each way in a process of its own. Memory is what the process grew by at its peak, gradients of weight
and hidden states included; seconds are the median of the turns after the first.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F
from llmscale_kernels.cross_entropy import cross_entropy
from llmscale_kernels.linear_cross_entropy import Vocabulary, linear_cross_entropy
from rich.console import Console
from rich.table import Table
from torch import Tensor

WAYS = {"torch": "torch", "whole": "llmscale, whole logits", "parts": "llmscale, a few tokens at a time"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=128 * 1024)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        torch.set_num_threads(options.threads)
        print(json.dumps(measure(options)))
        return
    table = Table("way", "MiB", "of torch's", "seconds", "of torch's")
    found: dict[str, tuple[float, float]] = {}
    for way, name in WAYS.items():
        command = [sys.executable, "-m", "bench.loss", *sys.argv[1:], "--way", way]
        last = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
        memory, seconds = found[way] = json.loads(last)
        shares = (f"{one / theirs:.0%}" for one, theirs in zip(found[way], found["torch"]))
        table.add_row(name, f"{memory:,.0f}", next(shares), f"{seconds:.2f}", next(shares))
    Console().print(table)


def measure(options: argparse.Namespace) -> tuple[float, float]:
    """MiB and seconds of one way."""
    torch.manual_seed(0)
    hidden_TH = torch.randn(options.tokens, options.hidden, requires_grad=True)
    weight_VH = torch.randn(options.vocabulary, options.hidden).mul_(0.02).requires_grad_()
    labels_T = torch.randint(0, options.vocabulary, (options.tokens,))
    before, seconds = peak_mebibytes(), []
    for _ in range(options.turns + 1):
        hidden_TH.grad = weight_VH.grad = None
        began = time.perf_counter()
        losses(options.way, hidden_TH, weight_VH, labels_T).mean().backward()
        seconds.append(time.perf_counter() - began)
    return peak_mebibytes() - before, statistics.median(seconds[1:])


def losses(way: str, hidden_TH: Tensor, weight_VH: Tensor, labels_T: Tensor) -> Tensor:
    if way == "torch":
        return F.cross_entropy(F.linear(hidden_TH, weight_VH), labels_T, reduction="none")
    if way == "whole":
        return cross_entropy(F.linear(hidden_TH, weight_VH), labels_T, 0, len(weight_VH))
    return linear_cross_entropy(hidden_TH, weight_VH, labels_T, Vocabulary(0, len(weight_VH)))[0]


def peak_mebibytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
