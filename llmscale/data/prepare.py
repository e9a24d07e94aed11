"""Records -> prepared examples on disk, made once and reused by every later start.

FOLDER/{train|validation}-{place}/, one for each entry of `data`; `info.json` in it says what it was made
from, and what became of the records.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from pydantic import JsonValue

from llmscale.config.problems import InputError, Problem
from llmscale.config.schema import Config, CorpusEntry
from llmscale.data.corpus import entries_of_split
from llmscale.data.encoding import REASONS, Encoded, LeftOut, RecordEncoder, record_encoder
from llmscale.data.examples import INFO, Example, ExampleSet, write_examples
from llmscale.data.preferences.mismatch import with_mismatches
from llmscale.data.records import Record, RecordSource, Unreadable, record_source
from llmscale.data.sources import BadText
from llmscale.data.split import records_of_split

VERSION = 1
"""Of what is made of the same records under the same options; raise it with every change."""
BATCH = 1000
"""Records that are tokenised together."""
SHOWN = 5
"""Lines that are named of each reason to leave a record out."""


@dataclass
class Counts:
    """What became of the records."""

    records: int = 0
    examples: int = 0
    tokens: int = 0
    learned: int = 0
    left_out: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))
    lines: dict[str, list[str]] = field(default_factory=dict)
    """The first of them, with what is wrong."""
    notes: dict[str, int] = field(default_factory=dict)

    def add(self, line: int, outcome: Encoded | LeftOut) -> None:
        self.records += 1
        if isinstance(outcome, LeftOut):
            self.left_out[outcome.reason] += 1
            shown = self.lines.setdefault(outcome.reason, [])
            if len(shown) < SHOWN:
                shown.append(f"line {line}: {outcome.message}")
            return
        self.examples += 1
        self.tokens += len(outcome.visible.tokens)
        self.learned += int(outcome.visible.learned.sum())
        for note in outcome.notes:
            self.notes[note] = self.notes.get(note, 0) + 1

    def as_json(self) -> dict[str, JsonValue]:
        return {
            "records": self.records,
            "examples": self.examples,
            "tokens": self.tokens,
            "learned": self.learned,
            "left_out": dict(self.left_out),
            "lines": {reason: [*lines] for reason, lines in self.lines.items()},
            "notes": dict(self.notes),
        }


def prepare_examples(config: Config, folder: Path) -> dict[str, JsonValue]:
    """Write what `data` names into `folder`, unless it is there already; returns what became of the records
    of each part, by the name of its folder.

    Raises:
        InputError: records cannot be read, or most cannot be used; says why.
    """
    encoder = record_encoder(config)
    summary: dict[str, JsonValue] = {}
    problems: list[Problem] = []
    for split in ("train", "validation") if config.train.validate_every is not None else ("train",):
        section = "validation" if split == "validation" and config.data.validation else "train"
        for place, entry in enumerate(entries_of_split(config.data, split)):
            key = f"data.{section}.{place}.path"
            name = f"{split}-{place}"
            try:
                summary[name] = _prepare(config, encoder, entry, split, folder / name)
            except (BadText, Unusable) as error:
                problems.append(Problem(key, entry.path, str(error)))
    if problems:
        raise InputError(list(dict.fromkeys(problems)))
    return summary


class Unusable(Exception):
    """Too few of the records can be trained on; the message says why."""


def _prepare(
    config: Config, encoder: RecordEncoder, entry: CorpusEntry, split: str, folder: Path
) -> JsonValue:
    source = record_source(entry.path)
    key: dict[str, JsonValue] = {
        "version": VERSION,
        "source": source.identity,
        "fields": dict(entry.fields),
        "split": split,
        "shares": None if config.data.validation else [*config.data.split],
        "encoding": dict(encoder.key),
    }
    known = _info(folder)
    if known is not None and known.get("key") == key:
        return known["counts"]
    shutil.rmtree(folder, ignore_errors=True)
    counts = Counts()
    wanted = records_of_split(config, encoder, source, entry, split)
    examples = _examples(encoder, source, entry, wanted, counts)

    def info() -> dict[str, JsonValue]:
        return {"key": key, "counts": counts.as_json()}

    if config.task == "dpo" and config.dpo.loss == "kto":
        # Validation compares runs of other seeds.
        seed = config.train.seed if split == "train" else 0
        _write_with_mismatches(config, seed, examples, folder, info)
    else:
        write_examples(examples, folder, info)
    return counts.as_json()


def _write_with_mismatches(
    config: Config,
    seed: int,
    examples: Iterable[Example],
    folder: Path,
    info: Callable[[], dict[str, JsonValue]],
) -> None:
    """Each with an answer of another: so all must be known first.

    Raises:
        Unusable: there is no other.
    """
    row, placeholders = config.train.sequence_length, config.peft.placeholders
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        alone = Path(temporary) / "alone"
        write_examples(examples, alone, {})
        try:
            both = with_mismatches(ExampleSet(alone), row, placeholders, seed)
            write_examples(both, folder, info)
        except ValueError as error:
            raise Unusable(str(error)) from None


def _info(folder: Path) -> dict[str, JsonValue] | None:
    try:
        return json.loads((folder / INFO).read_bytes())
    except (OSError, ValueError):
        return None


def _examples(
    encoder: RecordEncoder, source: RecordSource, entry: CorpusEntry, wanted: np.ndarray, counts: Counts
) -> Iterator[Example]:
    """
    Args:
        wanted: numbers of the records of this split, in rising order.

    Raises:
        Unusable: at the end, if most records were not.
    """
    for line, _, outcome in outcomes(encoder, source, entry, wanted):
        counts.add(line, outcome)
        if isinstance(outcome, Encoded):
            yield outcome.example
    unusable = counts.records - counts.examples
    if 2 * unusable > counts.records or not counts.examples:
        raise Unusable(_why(counts, unusable))


def outcomes(
    encoder: RecordEncoder, source: RecordSource, entry: CorpusEntry, wanted: np.ndarray
) -> Iterator[tuple[int, Record | Unreadable, Encoded | LeftOut]]:
    """Line, record, and what becomes of it, for each of `source` whose number is in `wanted`."""
    of_split = np.zeros(int(wanted.max(initial=-1)) + 1, bool)
    of_split[wanted] = True
    chosen = (found for found, is_wanted in zip(source, of_split) if is_wanted)
    while batch := list(islice(chosen, BATCH)):
        readable = [record for _, record in batch if not isinstance(record, Unreadable)]
        encoded = iter(encoder.encode(readable, entry.fields))
        for line, record in batch:
            is_unreadable = isinstance(record, Unreadable)
            yield line, record, LeftOut("bad", record.message) if is_unreadable else next(encoded)


def _why(counts: Counts, unusable: int) -> str:
    if not counts.records:
        return "has no record for this split; see data.split"
    reasons = [
        f"{counts.left_out[reason]:,} {reason.replace('_', ' ')} ({counts.lines[reason][0]})"
        for reason in REASONS
        if counts.left_out[reason]
    ]
    return f"{unusable:,} of {counts.records:,} records cannot be trained on: {'; '.join(reasons)}"
