"""How deep a parameter lies, and what follows for its learning rate: less below, and none until reached."""

import re

from llmscale.config.schema import OptimizerSection
from llmscale.model.language_model import LanguageModel

LAYER = re.compile(r"decoder\.layers\.(\d+)\.")
OF_OUTPUT = ("decoder.final_layernorm.", "output_layer.", "score.")


def distance_from_output(chunk: LanguageModel, local_name: str) -> int:
    """0 for the head and the norm before it, then 1 for the last layer, 2 for the one before it, …; the
    embeddings, also where they are the output's matrix too, lie one below the first layer."""
    layers = chunk.model_section.layers
    found = LAYER.match(local_name)
    if found is not None:
        # Megatron counts the layers of the whole model from 1.
        return layers + 1 - int(chunk.decoder.layers[int(found[1])].layer_number)  # pyright: ignore[reportArgumentType]
    is_embedding = local_name == "output_layer.weight" and chunk.share_embeddings_and_output_weights
    return 0 if local_name.startswith(OF_OUTPUT) and not is_embedding else layers + 1


def learning_rate_scale(options: OptimizerSection, distance: int, step: int) -> float:
    """What the learning rate of `step` (the first is 1) is multiplied by, `distance` from the output.

    Discriminative learning rates and gradual unfreezing (arXiv:1801.06146). Head and last layer are trained
    from the start, and one more layer every `options.unfreeze_every` steps; what is not reached yet has a
    learning rate of 0, and so neither decay nor pull, but its moments are kept up.
    """
    every = options.unfreeze_every
    if every is not None and step <= (distance - 1) * every:
        return 0.0
    return options.layer_decay**distance


def is_graded(options: OptimizerSection) -> bool:
    """Whether learning rates depend on depth."""
    return options.layer_decay != 1 or options.unfreeze_every is not None
