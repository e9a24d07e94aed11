"""What both contenders of the fine-tuning benchmark train on."""

from dataclasses import dataclass

import numpy as np

from bench.workload import Workload
from llmscale.data.examples import Example

EXAMPLES = 1024
MEDIAN_LENGTH, SPREAD = 150, 0.5
"""Lengths are log-normal, as those of real conversations are roughly."""


@dataclass(frozen=True)
class TuningWorkload(Workload):
    packing: bool = False


def examples(workload: TuningWorkload) -> list[Example]:
    """The same made-up ones for everyone; of each the second half is learned."""
    generator = np.random.default_rng(1)
    lengths = MEDIAN_LENGTH * np.exp(SPREAD * generator.standard_normal(EXAMPLES))
    return [
        Example(
            generator.integers(4, workload.vocabulary_size, length).astype(np.int32),
            np.arange(length) >= length // 2,
        )
        for length in lengths.astype(int).clip(8, workload.sequence_length)
    ]
