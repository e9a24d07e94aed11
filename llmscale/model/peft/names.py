"""What the patterns of `peft` mean, told from the config alone. No torch."""

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from llmscale.config.problems import Problem
from llmscale.config.schema import ModelSection
from llmscale.config.tuning import PeftSection
from llmscale.model.families.table import family
from llmscale.model.tensors import OUTPUT

WEIGHT = ".weight"
LINEARS = ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2")
"""Ends of the local names of the linear layers that can get an update."""


def is_meant(name: str, patterns: Sequence[str]) -> bool:
    """Whether a linear layer is meant (all are, where there is no pattern). A pattern with `*` is for the
    whole name, one without for its end."""
    return not patterns or any(
        fnmatchcase(name, pattern) if "*" in pattern else f".{name}".endswith(f".{pattern}")
        for pattern in patterns
    )


def is_trained(name: str, patterns: Sequence[str]) -> bool:
    """Whether a tensor is trained by `peft.method: freeze`."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def half_meant(names: Sequence[str], patterns: Sequence[str]) -> str | None:
    """What is wrong where only a part of `names`, which are one tensor here, is to be trained."""
    meant = [name for name in names if is_trained(name, patterns)]
    if len(meant) in (0, len(names)):
        return None
    return f"means {meant[0]} alone, which is one tensor with {', '.join(names)}; name all of them or none"


def pattern_problems(model: ModelSection, peft: PeftSection) -> Iterator[Problem]:
    """Patterns that mean nothing in this model, or a part of what cannot be parted."""
    if peft.method in ("lora", "dora"):
        names = [name.removesuffix(WEIGHT) for group in _linear_weights(model) for name in group]
        kinds = ", ".join(sorted({name.rpartition(".")[2] for name in names}))
        for pattern in peft.target_modules:
            if not any(is_meant(name, [pattern]) for name in names):
                message = f"{pattern!r} is no linear layer of this model; it has {kinds}"
                yield Problem("peft.target_modules", peft.target_modules, message)
    if peft.method == "freeze":
        groups = list(_tensors(model))
        for pattern in peft.train:
            if not any(is_trained(name, [pattern]) for group in groups for name in group):
                message = f"{pattern!r} is no tensor of this model; its names are like {groups[-1][0]}"
                yield Problem("peft.train", peft.train, message)
        halves = (half_meant(group, peft.train) for group in groups)
        first = next((message for message in halves if message), None)
        if first is not None:
            yield Problem("peft.train", peft.train, first)


def _tensors(model: ModelSection) -> Iterator[tuple[str, ...]]:
    """Hugging Face names of the parts of each tensor that is one here."""
    for local_name, names in family(model.family).names.items():
        if local_name == OUTPUT and model.tie_embeddings_or_default:
            continue
        for layer in range(model.layers if "{layer}" in names[0] else 1):
            yield tuple(name.format(layer=layer) for name in names)


def _linear_weights(model: ModelSection) -> Iterator[tuple[str, ...]]:
    for local_name, names in family(model.family).names.items():
        if local_name.removesuffix(WEIGHT).endswith(LINEARS) and local_name.endswith(WEIGHT):
            for layer in range(model.layers):
                yield tuple(name.format(layer=layer) for name in names)
