"""Made-up examples of fine-tuning: texts of random tokens and lengths, of which the end is learned."""

import numpy as np

from llmscale.config.schema import Config
from llmscale.data.examples import Example

VOCABULARY = 501
ROW = 48


def made_up_examples(count: int, seed: int = 0, longest: int = ROW) -> list[Example]:
    """A completion of at least one token after a prompt of at least one. Few tokens are learned here and many
    there, so that a mean of means is not the mean."""
    generator = np.random.default_rng(seed)
    examples: list[Example] = []
    for _ in range(count):
        length = int(generator.integers(4, longest))
        prompt = int(generator.integers(1, length))
        tokens = generator.integers(2, VOCABULARY, length).astype(np.int32)
        examples.append(Example(tokens, np.arange(length) >= prompt))
    return examples


def sft_config(
    packing: bool, global_batch_size: int = 8, micro_batch_size: int = 2, **changes: object
) -> Config:
    """A small llama; `changes` are whole sections."""
    sections: dict[str, object] = {
        "task": "sft",
        "sft": {"packing": packing},
        "model": {
            "hidden_size": 64,
            "layers": 4,
            "heads": 8,
            "kv_heads": 4,
            "ffn_size": 96,
            "vocabulary_size": VOCABULARY,
        },
        "train": {
            "steps": 20,
            "global_batch_size": global_batch_size,
            "micro_batch_size": micro_batch_size,
            "sequence_length": ROW,
            "precision": "fp32",
        },
        "optimizer": {"lr": 2e-3, "warmup_steps": 4, "epsilon": 1e-6, "clip": 1.0},
    }
    return Config.model_validate(sections | changes)
