"""Contender: output layer and loss, forward and backward, in one of three ways."""

import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from llmscale_kernels.cross_entropy import cross_entropy
from llmscale_kernels.linear_cross_entropy import Vocabulary, linear_cross_entropy
from torch import Tensor


@dataclass(frozen=True)
class LossWorkload:
    way: str
    """torch, whole (logits) or parts (of them)."""
    vocabulary: int
    tokens: int
    hidden: int
    turns: int
    """That are measured, after one that is not."""
    threads: int
    ranks: int = 1

    def as_argument(self) -> str:
        return json.dumps(asdict(self))


def main() -> None:
    workload = LossWorkload(**json.loads(sys.argv[1]))
    torch.set_num_threads(workload.threads)
    torch.manual_seed(0)
    hidden_TH = torch.randn(workload.tokens, workload.hidden, requires_grad=True)
    weight_VH = torch.randn(workload.vocabulary, workload.hidden).mul_(0.02).requires_grad_()
    labels_T = torch.randint(0, workload.vocabulary, (workload.tokens,))
    before, turns = peak_mebibytes(), []
    for _ in range(workload.turns + 1):
        hidden_TH.grad = weight_VH.grad = None
        began = time.perf_counter()
        losses(workload.way, hidden_TH, weight_VH, labels_T).mean().backward()
        turns.append(time.perf_counter() - began)
    seconds = statistics.median(turns[1:])
    speed = {"seconds": seconds, "tokens_per_second": workload.tokens / seconds, "turns": turns[1:]}
    print(json.dumps({"mebibytes": peak_mebibytes() - before, **speed}))


def losses(way: str, hidden_TH: Tensor, weight_VH: Tensor, labels_T: Tensor) -> Tensor:
    if way == "torch":
        return F.cross_entropy(F.linear(hidden_TH, weight_VH), labels_T, reduction="none")
    if way == "whole":
        return cross_entropy(F.linear(hidden_TH, weight_VH), labels_T, 0, len(weight_VH))
    return linear_cross_entropy(hidden_TH, weight_VH, labels_T, Vocabulary(0, len(weight_VH)))[0]


def peak_mebibytes() -> float:
    """Largest resident memory of this process so far. (`ru_maxrss` would begin with its parent's.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    [peak] = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(peak) / 1024


if __name__ == "__main__":
    main()
