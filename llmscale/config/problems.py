"""What is wrong with a user's input: collected, then reported all at once."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing that must change before anything can start."""

    key: str
    """Dotted key, file or flag at fault."""
    value: object
    """What stands there now."""
    message: str
    """What is wrong, and the way out."""

    def __str__(self) -> str:
        return f"{self.key} = {self.value}: {self.message}"


class InputError(Exception):
    """Bad input (exit code 2). Carries every problem found, not only the first."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(str(problem) for problem in problems))

    def __reduce__(self) -> tuple[type["InputError"], tuple[list[Problem]]]:
        """It may come from another process."""
        return InputError, (self.problems,)
