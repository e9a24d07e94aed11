"""Section of what answers a model's answers: conversations of several turns (`task: rlhf`)."""

import re
from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from llmscale.config.problems import Problem
from llmscale.config.rlhf_rewards import FUNCTION, WorkerSection
from llmscale.config.section import PositiveFloat, PositiveInt, Section

NAME = "environment"
"""What metrics call its reward."""

ENVIRONMENTS = {"guess_number": "llmscale.rlhf.conversations.guess_number:GuessNumber"}
"""Those that come along, by their names; each needs the standard library alone."""


class EnvironmentSection(Section):
    """What answers a model's answers, turn by turn, and rewards them."""

    @classmethod
    def shorthand(cls) -> str:
        return "environment"

    environment: str
    """`guess_number`, or `module:Class` of one of yours, with `reset(record)` and `step(completion)`."""
    turns: PositiveInt = 4
    """Answers of the model in one conversation, at most."""
    step_seconds: PositiveFloat = 10.0
    """For one call of `reset` or `step`."""
    max_error_share: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Of the conversations of one step that may fail, and are left out of training; with more the run
    stops."""
    worker: WorkerSection = WorkerSection()
    """Where environments live; `timeout_seconds` is for the calls of a whole batch."""

    @property
    def function(self) -> str:
        """`module:Class`."""
        return ENVIRONMENTS.get(self.environment, self.environment)


def environment_problems(section: EnvironmentSection, key: str = "rlhf.environment") -> Iterator[Problem]:
    """What is wrong with the section at the dotted `key`."""
    if not re.fullmatch(FUNCTION, section.function):
        message = f"is none of {', '.join(ENVIRONMENTS)}, and no module:Class, such as my.games:Chess"
        yield Problem(f"{key}.environment", section.environment, message)
