"""Some of the model's own weights are trained, the others stay."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from llmscale.config.problems import InputError, Problem
from llmscale.config.tuning import PeftSection
from llmscale.model.language_model import LanguageModel
from llmscale.model.parameters import declare_parameters


def apply(chunks: Sequence[LanguageModel], options: PeftSection, seed: int) -> None:
    """Train what the patterns `options.train` mean.

    Raises:
        InputError: they mean only a part of what is one tensor here.
    """
    problems: list[Problem] = []
    for chunk in chunks:
        declarations = declare_parameters(chunk)
        for local_name, parameter in chunk.named_parameters():
            names = declarations[local_name].names
            meant = [name for name in names if any(fnmatchcase(name, p) for p in options.train)]
            parameter.requires_grad_(bool(meant))
            if 0 < len(meant) < len(names):
                message = f"means {meant[0]} alone, which is one tensor with the rest of {', '.join(names)}"
                problems.append(Problem("peft.train", options.train, f"{message}; name all of them or none"))
    if problems:
        raise InputError(problems)
