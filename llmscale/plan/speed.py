"""Tokens, operations and time of a run, and the size of its checkpoints."""

from dataclasses import dataclass

from llmscale.config.schema import Config
from llmscale.plan.activations import bubble, microbatches
from llmscale.plan.flops import flops_per_token
from llmscale.plan.parameters import model_parameters

ASSUMED_UTILISATION = 0.4
"""Share of the peak that a well-tuned dense model reaches on GPUs, pipeline bubble aside."""
CHECKPOINT_BYTES_PER_PARAMETER = 12
"""fp32 weights and the optimizer's two moments."""


@dataclass(frozen=True)
class Amounts:
    """What the config asks for, whatever runs it."""

    parameters: int
    microbatches: int
    """Of one step, on one model replica."""
    bubble: float
    """Share of a step in which a pipeline stage waits."""
    tokens_per_step: int
    tokens: int
    """Of the whole schedule, batch-size warm-up left aside."""
    flops_per_token: float
    checkpoint_bytes: int


def amounts(config: Config, vocabulary_size: int) -> Amounts:
    model, train, parallel = config.model, config.train, config.parallel
    parameters = model_parameters(model, vocabulary_size, train.sequence_length, config.outputs).total
    tokens_per_step = train.global_batch_size * train.sequence_length
    return Amounts(
        parameters=parameters,
        microbatches=microbatches(config),
        bubble=bubble(microbatches(config), parallel.pipeline, parallel.interleave),
        tokens_per_step=tokens_per_step,
        tokens=tokens_per_step * train.steps,
        flops_per_token=flops_per_token(model, train.sequence_length, vocabulary_size, config.outputs),
        checkpoint_bytes=parameters * CHECKPOINT_BYTES_PER_PARAMETER,
    )


def step_seconds(config: Config, wanted: Amounts, peak_flops: float, utilisation: float) -> float:
    """Estimate of one step's time: the useful operations at a share of the peak, stretched by the bubble.

    Full recomputation runs each layer's forward pass once more, a third of the work.
    """
    work = (
        wanted.tokens_per_step * wanted.flops_per_token * (4 / 3 if config.train.recompute == "full" else 1)
    )
    return work / (config.world_size * peak_flops * utilisation * (1 - wanted.bubble))
