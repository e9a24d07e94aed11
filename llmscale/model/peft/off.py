"""A tuned model as it was before: what a method has added beside the layers says nothing for a while."""

import contextlib
from collections.abc import Iterator, Sequence

from llmscale.model.language_model import LanguageModel
from llmscale.model.peft.adapter import Adapter
from llmscale.model.peft.lora import LoraUpdate


@contextlib.contextmanager
def peft_off(chunks: Sequence[LanguageModel]) -> Iterator[None]:
    """Of the methods lora, dora and adapter, which leave the weights of the base as they are
    (`llmscale.config.tuning.SWITCHED_OFF`)."""
    added = [
        module for chunk in chunks for module in chunk.modules() if isinstance(module, (Adapter, LoraUpdate))
    ]
    for module in added:
        module.is_on = False
    try:
        yield
    finally:
        for module in added:
            module.is_on = True
