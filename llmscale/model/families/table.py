"""The families, by the name that `model.family` gives. A new one is a file and a line here."""

from importlib import import_module

from llmscale.model.families.family import Family

FAMILIES = {
    "llama": "llmscale.model.families.llama:LLAMA",
    "mistral": "llmscale.model.families.llama:MISTRAL",
    "qwen3": "llmscale.model.families.qwen3:QWEN3",
    "gpt2": "llmscale.model.families.gpt2:GPT2",
}


def family(name: str) -> Family:
    module, attribute = FAMILIES[name].split(":")
    return getattr(import_module(module), attribute)
