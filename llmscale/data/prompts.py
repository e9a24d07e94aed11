"""Prompts that a model is to answer, in an order that depends on the seed and the position alone."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np

from llmscale.config.problems import InputError, Problem
from llmscale.config.schema import Config, CorpusEntry
from llmscale.data.blend import Blend
from llmscale.data.chat.conversation import BadRecord
from llmscale.data.corpus import entries_of_split
from llmscale.data.loader import VALIDATION_SEED
from llmscale.data.prompt_records import Prompt, PromptReader
from llmscale.data.records import Record, Unreadable, record_source
from llmscale.data.sources import BadText
from llmscale.data.split import records_of_split
from llmscale.parallel.rng import derived_seed

Split = Literal["train", "validation"]


class PromptSet:
    """The prompts of one source, in a new order each epoch."""

    def __init__(self, prompts: Sequence[Prompt], seed: str) -> None:
        self.prompts = prompts
        self.seed = seed
        self._order = np.zeros(0, np.int64)
        self._order_of = -1

    @property
    def samples_per_epoch(self) -> int:
        return len(self.prompts)

    def sample(self, epoch: int, sample: int) -> Prompt:
        if epoch != self._order_of:
            generator = np.random.default_rng(derived_seed(self.seed, epoch))
            self._order, self._order_of = generator.permutation(len(self.prompts)), epoch
        return self.prompts[int(self._order[sample])]


class Prompts:
    """The prompts of a split, blended by the weights of their sources. The position is one number: the
    prompts that were asked before.

    Args:
        left_out: how many records of all sources are not among them, by the reason.
    """

    def __init__(
        self, sets: Sequence[PromptSet], weights: Sequence[float], left_out: Mapping[str, int]
    ) -> None:
        self.left_out = dict(left_out)
        self._sets = sets
        self._blend = Blend(sets, weights)  # type: ignore[arg-type]  # of which only the places are asked

    def __len__(self) -> int:
        """Prompts of all sources."""
        return sum(one.samples_per_epoch for one in self._sets)

    def __iter__(self) -> Iterator[Prompt]:
        """Each once, as they stand in the sources."""
        return (prompt for one in self._sets for prompt in one.prompts)

    def at(self, position: int, count: int) -> list[Prompt]:
        """The `count` prompts that follow `position` prompts; epoch after epoch, without end."""
        places = [self._blend.locate(number) for number in range(position, position + count)]
        return [self._sets[place.corpus].sample(place.epoch, place.sample) for place in places]

    @property
    def content(self) -> str:
        """SHA-256 of all that they say and of all that judges are given: a position is one of these."""
        digest = hashlib.sha256()
        for prompt in self:
            digest.update(json.dumps([prompt.tokens, prompt.fields], sort_keys=True, default=str).encode())
        return digest.hexdigest()


def open_prompts(config: Config, reader: PromptReader, split: Split) -> Prompts:
    """What `data` names for a split: whole prompts on one side of it each.

    Raises:
        InputError: a source cannot be read, or has no prompt that can be used.
    """
    section = "validation" if split == "validation" and config.data.validation else "train"
    seed = str(config.train.seed) if split == "train" else VALIDATION_SEED
    entries = entries_of_split(config.data, split)
    sets: list[PromptSet] = []
    problems: list[Problem] = [] if entries else [Problem(f"data.{section}", [], "names no prompts")]
    left_out: dict[str, int] = {}
    for place, entry in enumerate(entries):
        try:
            found = _read_source(config, reader, entry, split, left_out)
            sets.append(PromptSet(found, f"{seed}/{split}/{place}"))
        except (BadText, OSError) as error:
            problems.append(Problem(f"data.{section}.{place}.path", entry.path, str(error)))
    if problems:
        raise InputError(problems)
    return Prompts(sets, [entry.weight for entry in entries], left_out)


def _read_source(
    config: Config, reader: PromptReader, entry: CorpusEntry, split: Split, left_out: dict[str, int]
) -> list[Prompt]:
    """
    Raises:
        BadText: it is damaged, or has no prompt for this split.
    """
    source = record_source(entry.path)
    wanted = {*records_of_split(config, reader, source, entry, split).tolist()}
    found: list[Prompt] = []
    first_fault: str | None = None
    for number, (line, record) in enumerate(source):
        if number not in wanted:
            continue
        outcome = _outcome(reader, record, entry, f"{entry.path}, line {line}")
        if isinstance(outcome, Prompt):
            found.append(outcome)
            continue
        reason, message = outcome
        first_fault = first_fault or f"line {line} {message}"
        left_out[reason] = left_out.get(reason, 0) + 1
    if not found:
        fault = first_fault or "this split has no record"
        raise BadText(f"has no prompt for {split} that can be used: {fault}")
    return found


def _outcome(
    reader: PromptReader, record: Record | Unreadable, entry: CorpusEntry, place: str
) -> Prompt | tuple[str, str]:
    """The prompt, or why there is none: in a word, and in full."""
    if isinstance(record, Unreadable):
        return "bad", record.message
    try:
        prompt = reader.read(record, entry.fields, place)
    except BadRecord as error:
        return "bad", str(error)
    if len(prompt.tokens) > reader.longest:
        return "too_long", f"has {len(prompt.tokens):,} tokens, of which {reader.longest:,} are allowed"
    return prompt
