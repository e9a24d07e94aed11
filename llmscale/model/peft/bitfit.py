"""BitFit (arXiv:2106.10199): the biases are trained, and nothing else."""

from collections.abc import Sequence

from llmscale.config.tuning import PeftSection
from llmscale.model.language_model import LanguageModel


def apply(chunks: Sequence[LanguageModel], options: PeftSection, seed: int) -> None:
    """Train the biases; the rules of the config have refused families without any."""
    for chunk in chunks:
        for name, parameter in chunk.named_parameters():
            parameter.requires_grad_(name.endswith(".bias"))
