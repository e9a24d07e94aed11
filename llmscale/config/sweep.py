"""`sweep:` lists of a config: which runs they stand for."""

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

from llmscale.config.nearest import nearest_key
from llmscale.config.problems import Problem
from llmscale.config.schema import Config, Section

MOST_RUNS = 1000
"""SLURM's own limit of an array (MaxArraySize 1001) as it comes."""
FIXED = ("run", "cluster", "sweep")
"""Sections that all runs of a sweep share: they are one job array."""


def combinations(sweep: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """Every combination of the values, the last key changing fastest."""
    return [dict(zip(sweep, values, strict=True)) for values in product(*sweep.values())]


def check_sweep(config: Config) -> Iterator[Problem]:
    """What is wrong with the keys and the number of values; empty where there is no sweep."""
    runs = 1
    for key, values in config.sweep.items():
        runs *= max(len(values), 1)
        if not values:
            yield Problem(f"sweep.{key}", values, "has no values to try; name some, or leave the key out")
        if key.partition(".")[0] in FIXED:
            yield Problem(f"sweep.{key}", values, "is the same for all runs of a sweep; sweep something else")
        elif not _exists(config, key):
            yield Problem(f"sweep.{key}", values, nearest_key(key.split(".")))
    if runs > MOST_RUNS:
        yield Problem("sweep", f"{runs:,} runs", f"is more than {MOST_RUNS:,}; sweep over fewer values")


def _exists(config: Config, key: str) -> bool:
    """Whether `key` leads to something that the schema knows."""
    value: object = config
    for part in key.split("."):
        if not isinstance(value, Section) or part not in type(value).model_fields:
            # Below a section that is left out (`train.batch_warmup.start`) the schema itself answers later.
            return value is None
        value = getattr(value, part)
    return True
