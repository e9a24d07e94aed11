"""A warning after the first step, where the same answer to every prompt gets more than the model's own: soon
the model would give no other."""

from llmscale.config.rlhf import RlhfSection
from llmscale.rlhf.controller import Outcome
from llmscale.rlhf.rewards.constant import constant_answer_warnings, constant_answers
from llmscale.rlhf.rewards.reward import Sample
from llmscale.rlhf.rewards.weighted import Rewards
from llmscale.runtime.events import EventLog

RULES = ("function", "math", "python")
"""Rewards that are asked; those of models cost too much, and take no constant answer for a good one."""
PROMPTS = 8
"""That constant answers are given to."""


def warn_of_constant_answers(options: RlhfSection, outcome: Outcome, events: EventLog) -> None:
    """
    Args:
        outcome: of the first step.
    """
    if options.environment is not None or not all(term.kind in RULES for term in options.rewards):
        return
    samples = [
        Sample(prompt.said, "", prompt.tokens, len(prompt.tokens), True, prompt.record, prompt.fields)
        for prompt in outcome.prompts[:PROMPTS]
    ]
    # Of their own, so that their errors are not counted among those of the run.
    with Rewards(options.rewards) as rewards:
        found = constant_answers(rewards.score, samples)
    for cause in constant_answer_warnings(found[:1], outcome.figures["reward_mean"]):
        own = f"the model's own answers {outcome.figures['reward_mean']:.3g}"
        events.write("constant_answer", 1, cause=f"{cause}, {own}")
