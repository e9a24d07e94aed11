"""`best_of_n`: the best of several answers to each prompt, kept in a file beside the run.

The file has one line for each prompt that was asked, in the order of the sources. A step's lines are appended
together; those that came after the last commit are taken away when the run goes on, and written again.
"""

import json
import os
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import Any

from llmscale.config.problems import InputError, Problem
from llmscale.data.prompt_records import Prompt
from llmscale.data.prompts import Prompts
from llmscale.rlhf.experience import Experience
from llmscale.rlhf.learning import best_places

FILE = "best_of_n.jsonl"


class EachOnce:
    """All prompts in the order of the sources, as `Prompts` without a second epoch."""

    def __init__(self, prompts: Prompts) -> None:
        self._prompts = list(prompts)

    def __len__(self) -> int:
        return len(self._prompts)

    def at(self, position: int, count: int) -> list[Prompt]:
        """Fewer at the end."""
        return self._prompts[position : position + count]


class BestAnswers:
    """
    Args:
        prompts: that were asked when the run was last committed.

    Raises:
        InputError: the file has fewer lines than those.
    """

    def __init__(self, run_folder: Path, prompts: int) -> None:
        self.path = run_folder / FILE
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch()
        with self.path.open("rb") as file:
            lines = sum(1 for _ in islice(file, prompts))
            end = file.tell() if lines else 0
        if lines < prompts:
            message = (
                f"has {lines} lines of the {prompts} that were written; checkpoint.resume=never begins anew"
            )
            raise InputError([Problem("run.name", self.path, message)])
        os.truncate(self.path, end)

    def append(
        self, prompts: Sequence[Prompt], experiences: Sequence[Experience], texts: Sequence[str]
    ) -> None:
        """The best answer to each of these prompts, with what it is worth and the mean of all answers to it;
        nulls where nobody knows."""
        best = {experiences[place].prompt: place for place in best_places(experiences)}
        lines: list[str] = []
        for number, prompt in enumerate(prompts):
            line: dict[str, Any] = {"prompt": prompt.said, **dict(prompt.fields)}
            line |= _kept(best.get(number), experiences, texts)
            line["reward_mean"] = _mean([one for one in experiences if one.prompt == number])
            lines.append(json.dumps(line, ensure_ascii=False) + "\n")
        with self.path.open("ab") as file:
            file.write("".join(lines).encode())
            file.flush()
            os.fsync(file.fileno())


def _kept(place: int | None, experiences: Sequence[Experience], texts: Sequence[str]) -> dict[str, Any]:
    if place is None:
        return {"answer": None, "reward": None, "rewards": {}}
    one = experiences[place]
    return {"answer": texts[place], "reward": one.reward, "rewards": dict(one.rewards)}


def _mean(experiences: Sequence[Experience]) -> float | None:
    rewards = [one.reward for one in experiences if one.reward is not None]
    return mean(rewards) if rewards else None
