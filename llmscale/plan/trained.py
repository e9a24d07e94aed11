"""How many parameters a rank trains, told from the config."""

from collections.abc import Iterator

from llmscale.config.schema import Config, ModelSection
from llmscale.plan.parameters import ParameterCount

ADDING = ("lora", "dora", "adapter", "prefix_tuning", "prompt_tuning", "p_tuning")
"""Methods whose parameters come to those of the model."""


def trained_on_rank(config: Config, count: ParameterCount, stage: int) -> int:
    """Parameters that one tensor rank of pipeline stage `stage`, which holds `count`, trains. Patterns
    (`peft.target_modules`, `peft.train`) are taken to mean everything, which is the most that it can be."""
    if config.peft.method in ("none", "freeze"):
        return count.total
    is_last = stage == config.parallel.pipeline - 1
    # A head, which is on the last stage, is trained whole beside the few weights.
    head = count.output if config.outputs is not None else 0
    trained = _by_method(config, stage == 0, is_last) + head
    return trained or 1  # a stage in which nothing is trained has an anchor


def _by_method(config: Config, is_first: bool, is_last: bool) -> int:
    """What the method itself trains on one tensor rank of a stage."""
    model, peft, tensor = config.model, config.peft, config.parallel.tensor
    layers, hidden = model.layers // config.parallel.pipeline, model.hidden_size
    kept, width = peft.virtual_tokens, peft.encoder_hidden_size or hidden
    match peft.method:
        case "lora" | "dora":
            return layers * sum(_update(config, *shape) for shape in _linear_layers(model))
        case "adapter":
            return layers * 2 * (2 * hidden * peft.bottleneck + peft.bottleneck + hidden)
        case "prefix_tuning":
            return layers * 2 * kept * model.kv_heads_or_default * model.head_size_or_default // tensor
        case "prompt_tuning":
            return kept * hidden if is_first else 0
        case "p_tuning":
            network = 2 * hidden * width + width * width + 2 * width + hidden
            return kept * hidden + network if is_first else 0
        case "bitfit":
            cut = (3 * hidden + model.ffn_size_or_default) // tensor
            return layers * (cut + 4 * hidden) + (hidden if is_last else 0)
        case _:
            raise ValueError(f"{peft.method} trains weights of the model itself")


def _linear_layers(model: ModelSection) -> Iterator[tuple[int, int, bool]]:
    """Inputs, outputs, and whether it is cut along its outputs, of each linear layer that Hugging Face's
    model has in a transformer layer."""
    hidden, ffn = model.hidden_size, model.ffn_size_or_default
    query, kv = (heads * model.head_size_or_default for heads in (model.heads, model.kv_heads_or_default))
    if model.family == "gpt2":
        yield hidden, query + 2 * kv, True
        yield hidden, ffn, True
    else:
        for outputs in (query, kv, kv, ffn, ffn):
            yield hidden, outputs, True
    yield query, hidden, False
    yield ffn, hidden, False


def _update(config: Config, inputs: int, outputs: int, is_cut_along_outputs: bool) -> int:
    """A, B and magnitude of one layer on one tensor rank."""
    tensor = config.parallel.tensor
    inputs, outputs = (inputs, outputs // tensor) if is_cut_along_outputs else (inputs // tensor, outputs)
    return config.peft.rank * (inputs + outputs) + (outputs if config.peft.method == "dora" else 0)
