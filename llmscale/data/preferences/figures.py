"""What the answers of preferences are like as a whole: how long, and how often which label."""

from collections.abc import Callable, Iterator

import numpy as np

from llmscale.data.examples import Example

ONE_SIDED = 0.8
"""Share of the comparisons from which on a reader should know of it."""


class Figures:
    """Collects them, group by group."""

    def __init__(self) -> None:
        self._chosen: list[int] = []
        """Tokens of the best answer, one a comparison."""
        self._rejected: list[int] = []
        self._labels: list[float] = []
        self._prompts: list[int] = []
        """Hashes."""

    def add(self, group: Example) -> None:
        self._prompts.append(hash(group.tokens[: np.argmax(group.learned)].tobytes()))
        if group.target is not None:
            self._labels.append(group.target)
        chosen, *rejected = answer_lengths(group)
        self._chosen += [chosen] * len(rejected)
        self._rejected += rejected

    def facts(self) -> Iterator[tuple[str, str]]:
        if self._labels:
            yield "labels", f"{np.mean(self._labels):.1%} true"
        if self._chosen:
            chosen, rejected = np.median(self._chosen), np.median(self._rejected)
            yield "comparisons", f"{len(self._chosen):,}"
            yield "answers", f"median {chosen:,.0f} tokens where better, {rejected:,.0f} where worse"
            yield "the better is longer", f"{self._share(np.greater):.1%} of the comparisons"

    def doubts(self) -> Iterator[str]:
        if self._labels and len({*self._labels}) == 1:
            yield f"every label is {str(self._labels[0] > 0).lower()}"
        for which, share in (("longer", self._share(np.greater)), ("shorter", self._share(np.less))):
            if share >= ONE_SIDED:
                told = "length may be all that is learned"
                yield f"the better answer is the {which} one in {share:.0%} of the comparisons: {told}"

    def shared_prompts(self, held_out: "Figures") -> Iterator[str]:
        """Told of `held_out`, what is not trained on."""
        known = {*self._prompts}
        both = sum(prompt in known for prompt in held_out._prompts)
        if both:
            yield (
                f"{both:,} of {len(held_out._prompts):,} validation prompts are training prompts too; "
                "data.validation can name a file of others"
            )

    def _share(self, compare: Callable[[list[int], list[int]], np.ndarray]) -> float:
        """Of the comparisons."""
        return float(np.mean(compare(self._chosen, self._rejected))) if self._chosen else 0.0


def answer_lengths(group: Example) -> list[int]:
    """Learned tokens of each document."""
    starts = np.cumsum([0, *group.lengths])
    return [int(group.learned[start:stop].sum()) for start, stop in zip(starts, starts[1:])]
