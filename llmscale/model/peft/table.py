"""The methods, by the name that `peft.method` gives. A new one is a file and a line here."""

from collections.abc import Callable, Sequence
from importlib import import_module

from llmscale.config.tuning import PeftSection
from llmscale.model.language_model import LanguageModel

Apply = Callable[[Sequence[LanguageModel], PeftSection, int], None]
"""(chunks with their weights, options, seed): freezes what stays and adds what is trained."""

METHODS = {
    "lora": "llmscale.model.peft.lora:apply",
    "dora": "llmscale.model.peft.dora:apply",
    "adapter": "llmscale.model.peft.adapter:apply",
    "prefix_tuning": "llmscale.model.peft.prefix_tuning:apply",
    "prompt_tuning": "llmscale.model.peft.prompt_tuning:apply",
    "p_tuning": "llmscale.model.peft.p_tuning:apply",
    "bitfit": "llmscale.model.peft.bitfit:apply",
    "freeze": "llmscale.model.peft.freeze:apply",
}


def apply_peft(chunks: Sequence[LanguageModel], options: PeftSection, seed: int) -> None:
    """Make a model trained in full one that is trained as `options` say; its weights must be in place.

    The world must be active. Nothing happens for the method `none`.

    Raises:
        InputError: the options do not fit the model.
    """
    if options.method == "none":
        return
    for chunk in chunks:
        chunk.requires_grad_(False)
    module, _, function = METHODS[options.method].partition(":")
    apply: Apply = getattr(import_module(module), function)
    apply(chunks, options, seed)


def virtual_tokens(options: PeftSection) -> int:
    """Placeholders that the data puts before each text."""
    return options.placeholders
