"""What is told of a step and of a validation of reinforcement learning."""

from collections.abc import Sequence

import psutil

from llmscale.data.prompt_records import Prompt
from llmscale.rlhf.controller import Outcome
from llmscale.rlhf.state import State
from llmscale.runtime.hooks import Sample, StepRecord, ValidationRecord

SHOWN = 4
"""Samples of a validation, or of a step."""
SAMPLED_STEPS = 40
"""Steps of a whole run of which samples are kept, at least."""


def step_record(state: State, outcome: Outcome, seconds: float) -> StepRecord:
    """
    Args:
        state: that after the step.
        seconds: it took.
    """
    figures = dict(outcome.figures)
    # Where nothing learns there is none of these.
    loss, grad_norm, lr = (figures.pop(name, 0.0) for name in ("loss", "grad_norm", "lr"))
    # Of an optimizer step, of which a step may have several; what the run has learned from is the state's.
    for name in ("tokens", "critic_tokens"):
        figures.pop(name, None)
    return StepRecord(
        step=state.step,
        samples=state.prompts,
        tokens=state.tokens,
        loss=loss,
        grad_norm=grad_norm,
        lr=lr,
        step_seconds=seconds,
        tokens_per_second=sum(one.answer_length for one in outcome.experiences) / seconds,
        mfu=None,
        extra={**figures, "memory_bytes": psutil.Process().memory_info().rss},
    )


def validation_record(step: int, outcome: Outcome, seconds: float) -> ValidationRecord:
    return ValidationRecord(
        step=step,
        loss=None,
        perplexity=None,
        seconds=seconds,
        reward=outcome.figures["reward_mean"],
        metrics=outcome.figures,
        samples=samples_of(outcome),
    )


def is_sampled(step: int, steps: int) -> bool:
    """Whether samples of a step are kept: of the first, the last, and evenly between."""
    return step in (1, steps) or step % max(1, steps // SAMPLED_STEPS) == 0


def samples_of(outcome: Outcome) -> list[Sample]:
    """The first answer to each of the first prompts, which come in an order that is drawn."""
    found: list[Sample] = []
    for experience, text in zip(outcome.experiences, outcome.texts, strict=True):
        if experience.place == 0 and experience.prompt < SHOWN:
            asked = shown_prompt(outcome.prompts[experience.prompt])
            found.append(Sample(asked, text, experience.reward, experience.rewards))
    return found


def shown_prompt(prompt: Prompt) -> str:
    """A prompt as it stands; of a conversation a line a message."""
    if isinstance(prompt.said, str):
        return prompt.said
    return "\n".join(_line(message["role"], message.get("content")) for message in prompt.said)


def _line(role: str, content: str | Sequence[object] | None) -> str:
    return f"{role}: {'' if content is None else content}"
