"""An environment: guess a number, and be told each time whether it is higher or lower."""

import re
from collections.abc import Mapping
from typing import Any

Message = dict[str, str]


class GuessNumber:
    """The record says the number in `secret`, and in `low` and `high` between which it is (1 and 100).

    The reward comes with the guess that is right; each guess before it takes a tenth away.
    """

    def reset(self, record: Mapping[str, Any]) -> list[Message]:
        self._secret = int(record["secret"])
        low, high = int(record.get("low", 1)), int(record.get("high", 100))
        if not low <= self._secret <= high:
            raise ValueError(f"secret is {self._secret}, and must be from {low} to {high}")
        self._guesses = 0
        return [_user(f"I think of a number from {low} to {high}. Guess it: say a number and nothing else.")]

    def step(self, completion: str) -> tuple[list[Message], float, bool]:
        self._guesses += 1
        # Who says several numbers has not guessed.
        if not re.fullmatch(r"\s*-?[0-9]{1,9}\s*\.?\s*", completion):
            return [_user("Say a number and nothing else.")], 0.0, False
        guess = int(completion.strip().rstrip("."))
        if guess == self._secret:
            return [], max(0.1, 1.1 - 0.1 * self._guesses), True
        return [_user("Higher." if guess < self._secret else "Lower.")], 0.0, False


def _user(content: str) -> Message:
    return {"role": "user", "content": content}
