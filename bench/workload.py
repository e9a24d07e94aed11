"""What every contender trains on, so that all do the same work."""

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from llmscale.config.presets import load_preset
from llmscale.config.schema import ModelSection


@dataclass(frozen=True)
class Workload:
    preset: str
    precision: str
    """fp32 or bf16."""
    sequences: int = 8
    """In one optimizer step, over all ranks."""
    sequence_length: int = 512
    threads: int = 4
    """Of each rank."""
    seconds: float = 8.0
    """How long steps are measured, after two that are not."""
    ranks: int = 1
    parallel: dict[str, int] = field(default_factory=dict)
    micro_batch_size: int = 4

    @classmethod
    def from_command_line(cls) -> "Workload":
        return cls(**json.loads(sys.argv[1]))

    def as_argument(self) -> str:
        return json.dumps(asdict(self))

    @property
    def model(self) -> ModelSection:
        return load_preset(self.preset)

    @property
    def vocabulary_size(self) -> int:
        size = self.model.vocabulary_size
        assert size is not None, f"the preset {self.preset} names no vocabulary size"
        return size

    @property
    def tokens_per_step(self) -> int:
        return self.sequences * self.sequence_length


LEARNING_RATE = 3e-4
BETAS = (0.9, 0.95)
EPSILON = 1e-8
WEIGHT_DECAY = 0.1
CLIP = 1.0


def batch(workload: Workload) -> Tensor:
    """The same random tokens for everyone, [sequences, sequence length + 1]."""
    generator = torch.Generator().manual_seed(1)
    shape = (workload.sequences, workload.sequence_length + 1)
    return torch.randint(0, workload.vocabulary_size, shape, generator=generator)


def measure(workload: Workload, step: Callable[[], float]) -> None:
    """Run `step` (which returns its loss) for a while and print what was measured as the last line."""
    losses = [step(), step()]
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    times: list[float] = []
    while len(times) < 3 or sum(times) < workload.seconds:
        start = time.perf_counter()
        losses.append(step())
        times.append(time.perf_counter() - start)
    seconds = statistics.median(times)
    print(
        json.dumps(
            {
                "step_seconds": seconds,
                "tokens_per_second": workload.tokens_per_step / seconds,
                "losses": losses[:5],
                "peak_memory_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
            }
        )
    )
