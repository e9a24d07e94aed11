"""Some of the model's own weights are trained, the others stay."""

from collections.abc import Sequence

from llmscale.config.problems import InputError, Problem
from llmscale.config.tuning import PeftSection
from llmscale.model.language_model import LanguageModel
from llmscale.model.parameters import declare_parameters
from llmscale.model.peft.names import half_meant, is_trained


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
            parameter.requires_grad_(any(is_trained(name, options.train) for name in names))
            message = half_meant(names, options.train)
            if message is not None:
                problems.append(Problem("peft.train", options.train, message))
    if problems:
        raise InputError(problems)
