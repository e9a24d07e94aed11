"""The learning rate as a pure function of the step. No torch."""

import math

from llmscale.config.schema import OptimizerSection


def learning_rate(options: OptimizerSection, steps: int, step: int) -> float:
    """Learning rate of `step` (the first is 1) in a schedule of `steps`.

    Linear warm-up, then: cosine (arXiv:1608.03983) or linear to `min_lr` at the last step; wsd: constant,
    then linear to `min_lr` over the last `decay_steps` (arXiv:2404.06395); constant.
    """
    if step <= options.warmup_steps:
        return options.lr * step / options.warmup_steps
    low = options.min_lr_or_default
    if options.schedule == "constant":
        return options.lr
    decay_steps = steps - options.warmup_steps
    if options.schedule == "wsd":
        decay_steps = options.decay_steps or max(1, steps // 10)
    progress = min(max((step - (steps - decay_steps)) / max(decay_steps, 1), 0.0), 1.0)
    if options.schedule == "cosine":
        progress = (1 - math.cos(math.pi * progress)) / 2
    return options.lr + (low - options.lr) * progress
