"""Texts with what is to be told of each: a label, or a number.

Tokens are those of `tokenizer(text)` in transformers, with the special tokens that the tokenizer adds of its
own and no others. So the exported model gives a text the scores that it got here, without a rule for its
users to remember.
"""

import contextlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import JsonValue
from transformers import PreTrainedTokenizerBase

from llmscale.config.problems import InputError, Problem
from llmscale.config.schema import Config
from llmscale.data.encoding import Encoded, LeftOut, Record
from llmscale.data.examples import Example
from llmscale.data.pretrained import load_tokenizer
from llmscale.data.records import RecordSource, Unreadable, record_source
from llmscale.data.sources import BadText
from llmscale.data.tokenizer import tokenizer_hash

TEXT, LABEL = "text", "label"
"""Fields of a record."""


class BadTarget(ValueError):
    """A record's label cannot be used; the message says why."""


class LabelledEncoder:
    """Makes examples of records `{text, label}`.

    Args:
        config: its labels are known, where there are any.
        tokenizer: the one that `tokenizer.path` names.
    """

    def __init__(self, config: Config, tokenizer: PreTrainedTokenizerBase, tokenizer_identity: str) -> None:
        self.options = config.classify
        self.numbers = {label: number for number, label in enumerate(self.options.labels)}
        self.room = config.train.sequence_length - config.peft.placeholders
        """Tokens that a text may have."""
        self._tokenizer = tokenizer
        self._identity = tokenizer_identity

    @property
    def key(self) -> Mapping[str, JsonValue]:
        options = self.options.model_dump(mode="json", include={"problem", "labels", "too_long"})
        return {"task": "classify", "tokenizer_hash": self._identity, "room": self.room, **options}

    def encode(self, records: Sequence[Record], fields: Mapping[str, str]) -> list[Encoded | LeftOut]:
        text_key, label_key = fields.get(TEXT, TEXT), fields.get(LABEL, LABEL)
        found: list[tuple[str, float] | LeftOut] = []
        for record in records:
            text = record.get(text_key)
            if not isinstance(text, str):
                found.append(LeftOut("bad", f"{text_key} is no text"))
            elif not text.strip():
                found.append(LeftOut("empty", f"{text_key} is empty"))
            else:
                try:
                    found.append((text, self._target(label_key, record.get(label_key))))
                except BadTarget as error:
                    found.append(LeftOut("bad", str(error)))
        ids = iter(self._ids([one[0] for one in found if not isinstance(one, LeftOut)]))
        return [one if isinstance(one, LeftOut) else self._encoded(*one, next(ids)) for one in found]

    def _target(self, key: str, value: Any) -> float:
        """
        Raises:
            BadTarget: it is none.
        """
        if self.options.problem == "regression":
            return _number(key, value)
        label = label_name(key, value)
        if label not in self.numbers:
            raise BadTarget(f"{key} is {label!r}, which is not in the training data or in classify.labels")
        return float(self.numbers[label])

    def _ids(self, texts: list[str], **options: Any) -> list[list[int]]:
        """What is written like a special token is text all the same."""
        if not texts:
            return []
        return self._tokenizer(texts, split_special_tokens=True, verbose=False, **options)["input_ids"]

    def _encoded(self, text: str, target: float, ids: list[int]) -> Encoded | LeftOut:
        if not ids:
            return LeftOut("empty", "has no token")
        if len(ids) <= self.room:
            return Encoded(_example(ids, target))
        if self.options.too_long == "drop":
            return LeftOut("too_long", f"has {len(ids):,} tokens, and {self.room:,} fit")
        # The tokenizer cuts, because special tokens at the end stay.
        [cut] = self._ids([text], truncation=True, max_length=self.room)
        return Encoded(_example(cut, target), ("truncated",))


def _example(ids: Sequence[int], target: float) -> Example:
    """One token more than the text has: it stands for what is to be told, is learned, and is never read."""
    tokens = np.array([*ids, 0], np.int32)
    learned = np.zeros(len(tokens), bool)
    learned[-1] = True
    return Example(tokens, learned, target)


def _number(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadTarget(f"{key} is {value!r}, and regression needs a number")
    return float(value)


def label_name(key: str, value: Any) -> str:
    """The label's name: a text, or a whole number as text.

    Raises:
        BadTarget: it is neither.
    """
    if isinstance(value, str) and value:
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise BadTarget(f"{key} is {value!r}, which is no label: a text, or a whole number")


def labels_in(records: RecordSource, fields: Mapping[str, str]) -> set[str]:
    """All labels of the records; those that are none are told of where the records are encoded."""
    key = fields.get(LABEL, LABEL)
    found: set[str] = set()
    for _, record in records:
        if isinstance(record, Unreadable):
            continue
        with contextlib.suppress(BadTarget):
            found.add(label_name(key, record.get(key)))
    return found


def sorted_labels(labels: Iterable[str]) -> list[str]:
    """By name, or by number where all are whole numbers."""
    known = sorted(labels)
    return sorted(known, key=int) if all(_is_number(label) for label in known) else known


def _is_number(label: str) -> bool:
    return label.removeprefix("-").isdecimal()


def with_labels(config: Config) -> Config:
    """The config with the labels of the training data where `classify.labels` names none.

    Raises:
        InputError: the records cannot be read, or have fewer than two labels.
    """
    options = config.classify
    if options.problem == "regression" or options.labels:
        return config
    labels: set[str] = set()
    for place, entry in enumerate(config.data.train):
        try:
            labels |= labels_in(record_source(entry.path), entry.fields)
        except BadText as error:
            raise InputError([Problem(f"data.train.{place}.path", entry.path, str(error))]) from None
    if len(labels) < 2:
        message = (
            f"the training data has {', '.join(labels) or 'no label'} in its field {LABEL!r}, and to tell "
            "one from another takes two; data.train[].fields says what the field is called"
        )
        raise InputError([Problem("classify.labels", [], message)])
    known = options.model_copy(update={"labels": sorted_labels(labels)})
    return config.model_copy(update={"classify": known})


def record_encoder(config: Config) -> LabelledEncoder:
    """
    Raises:
        InputError: tokenizer or labels cannot be used.
    """
    path = config.tokenizer.path
    if path is None:
        raise InputError([Problem("tokenizer.path", None, "names none, and texts have to become tokens")])
    return LabelledEncoder(with_labels(config), load_tokenizer(path), tokenizer_hash(path))
