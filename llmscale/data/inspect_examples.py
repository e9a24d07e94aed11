"""A look at what a run on records would train on: figures, doubts, and samples token by token."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from llmscale.config.problems import InputError, Problem
from llmscale.config.schema import Config
from llmscale.data.chat.encode import ChatEncoder
from llmscale.data.chat.suspicions import Suspicions
from llmscale.data.corpus import entries_of_split
from llmscale.data.encoding import REASONS, LeftOut, RecordEncoder, record_encoder
from llmscale.data.examples import Document, Example
from llmscale.data.pack import packed
from llmscale.data.preferences.encode import PreferenceEncoder
from llmscale.data.preferences.figures import Figures
from llmscale.data.prepare import Counts, outcomes
from llmscale.data.records import Unreadable, record_source
from llmscale.data.sources import BadText
from llmscale.data.split import records_of_split
from llmscale.data.tokenizer import open_encoder

BARS = 8
"""Of the histogram of lengths."""


@dataclass(frozen=True)
class ShownToken:
    text: str
    """What it adds to the text: nothing where a later one ends the character; its name if none does."""
    id: int
    learned: bool
    special: bool = False


@dataclass(frozen=True)
class ShownText:
    """A text of a sample: of a comparison one an answer."""

    tokens: list[ShownToken]
    title: str = ""
    rejected: bool = False
    """What is learned of it is the worse answer, or a wrong one."""


@dataclass(frozen=True)
class Sample:
    title: str
    texts: list[ShownText]


@dataclass
class Inspection:
    """All that is shown."""

    facts: list[tuple[str, str]] = field(default_factory=list)
    lengths: list[tuple[str, int]] = field(default_factory=list)
    """Histogram: range of tokens, examples."""
    suspicious: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    compares: bool = False
    """Answers, some of which are better than others."""


@dataclass
class _Split:
    """What one split holds."""

    counts: Counts = field(default_factory=Counts)
    lengths: list[int] = field(default_factory=list)
    used: list[int] = field(default_factory=list)
    """Tokens of a row that each example takes."""
    figures: Figures = field(default_factory=Figures)
    hashes: list[int] = field(default_factory=list)


def inspect_config(config: Config, samples: int) -> Inspection:
    """Encode what the config names, as its run would, and look at it.

    Args:
        samples: examples to show, evenly spread over the training data.

    Raises:
        InputError: it trains on corpora, or its tokenizer, template or records cannot be used.
    """
    if config.task == "pretrain":
        message = "trains on corpora; name one of them in place of the config, with --tokenizer"
        raise InputError([Problem("task", config.task, message)])
    encoder = record_encoder(config)
    chat = _chat_of(encoder)
    suspicions = Suspicions(chat, config.tokenizer.path) if chat is not None else None
    train, validation = _Split(), _Split()
    kept = _Spread(samples)
    for line, found in _read(config, encoder, "train", train, suspicions):
        kept.add(line, found)
    for _ in _read(config, encoder, "validation", validation, None):
        pass
    tokenizer = open_encoder(config.tokenizer.path)  # type: ignore[arg-type]  # the encoder needed it too
    return Inspection(
        _facts(config, encoder, train, validation),
        _histogram(train.lengths),
        [*_doubts(train, validation), *(suspicions.found() if suspicions is not None else [])],
        [Sample(title, _shown_texts(example, tokenizer)) for title, example in kept.examples],
        compares=isinstance(encoder, PreferenceEncoder),
    )


def _chat_of(encoder: RecordEncoder) -> ChatEncoder | None:
    """What tells answers from the rest, where something does."""
    if isinstance(encoder, PreferenceEncoder):
        return encoder.chat
    return encoder if isinstance(encoder, ChatEncoder) else None


def _shown_texts(example: Example, tokenizer: Tokenizer) -> list[ShownText]:
    if not example.documents:
        return [ShownText(shown_tokens(example, tokenizer))]
    starts = np.cumsum([0, *example.lengths])
    parts = [Example(example.tokens[a:b], example.learned[a:b]) for a, b in zip(starts, starts[1:])]
    return [
        ShownText(
            shown_tokens(part, tokenizer),
            _title(document, example),
            rejected=document.role > 0 if example.target is None else not example.target,
        )
        for part, document in zip(parts, example.documents)
    ]


def _title(document: Document, example: Example) -> str:
    if example.target is not None:
        return f"label: {str(example.target > 0).lower()}"
    if document.role == 0:
        return "chosen"
    ranked = max(one.role for one in example.documents) > 1
    margin = f", {document.margin:g} worse" if document.margin else ""
    return f"rejected{f' (rank {document.role + 1})' if ranked else ''}{margin}"


def shown_tokens(example: Example, tokenizer: Tokenizer) -> list[ShownToken]:
    stream = DecodeStream(skip_special_tokens=False)
    added = tokenizer.get_added_tokens_decoder()
    special = {token for token, found in added.items() if found.special}
    shown: list[ShownToken] = []
    begun = 0
    """Where the character begins that the newest tokens are parts of."""
    for place, (token, learned) in enumerate(zip(example.tokens.tolist(), example.learned.tolist())):
        text = stream.step(tokenizer, token) or ""
        shown.append(ShownToken(text, token, learned, token in special))
        begun = place + 1 if text else begun
    unfinished = [replace(one, text=tokenizer.id_to_token(one.id) or f"<{one.id}>") for one in shown[begun:]]
    return shown[:begun] + unfinished


class _Spread:
    """A few of many examples, evenly spread; how many there are is not known before."""

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self._kept: list[tuple[str, Example]] = []
        self._stride, self._seen = 1, 0

    def add(self, title: str, example: Example) -> None:
        if self._seen % self._stride == 0:
            self._kept.append((title, example))
        self._seen += 1
        if len(self._kept) > 2 * self.wanted + 1:
            self._kept, self._stride = self._kept[::2], 2 * self._stride

    @property
    def examples(self) -> list[tuple[str, Example]]:
        places = np.linspace(0, len(self._kept) - 1, min(self.wanted, len(self._kept))).astype(int)
        return [self._kept[place] for place in places]


def _read(
    config: Config, encoder: RecordEncoder, split: str, into: _Split, suspicions: Suspicions | None
) -> Iterator[tuple[str, Example]]:
    """Examples as a reader sees them."""
    section = "validation" if split == "validation" and config.data.validation else "train"
    for place, entry in enumerate(entries_of_split(config.data, split)):
        try:
            source = record_source(entry.path)
            wanted = records_of_split(config, encoder, source, entry, split)
            for line, record, outcome in outcomes(encoder, source, entry, wanted):
                into.counts.add(line, outcome)
                if isinstance(outcome, LeftOut) or isinstance(record, Unreadable):
                    continue
                example, shown = outcome.example, outcome.visible
                before = config.peft.placeholders - 1  # the last token of each is a label only
                into.lengths.append(len(shown.tokens))
                into.used.append(len(example.tokens) + before * len(example.lengths))
                into.hashes.append(hash(example.tokens.tobytes()))
                if isinstance(encoder, PreferenceEncoder):
                    into.figures.add(shown)
                if suspicions is not None and isinstance(encoder, ChatEncoder | PreferenceEncoder):
                    suspicions.look(line, encoder.contents(record, entry.fields), shown)
                yield f"{entry.path.name}, line {line:,}", shown
        except BadText as error:
            raise InputError([Problem(f"data.{section}.{place}.path", entry.path, str(error))]) from None


def _facts(
    config: Config, encoder: RecordEncoder, train: _Split, validation: _Split
) -> list[tuple[str, str]]:
    counts = train.counts
    facts = [("task", config.task)]
    chat = _chat_of(encoder)
    if chat is not None:
        facts.append(("chat template", chat.template.name))
    if isinstance(encoder, ChatEncoder):
        facts.append(("learned", config.sft.learn))
    facts += [
        ("records", f"{counts.records:,} to train on, {validation.counts.records:,} to validate on"),
        ("examples", f"{counts.examples:,} to train on, {validation.counts.examples:,} to validate on"),
    ]
    for reason in REASONS:
        if counts.left_out[reason]:
            facts.append((f"left out: {reason.replace('_', ' ')}", _with_lines(counts, reason)))
    facts += [(note, f"{times:,}") for note, times in counts.notes.items()]
    if train.lengths:
        lengths = np.array(train.lengths)
        facts += [
            ("tokens", f"{counts.tokens:,}, of them learned {counts.learned / counts.tokens:.1%}"),
            ("length", f"median {np.median(lengths):,.0f}, longest {lengths.max():,} tokens"),
            ("filled", _filled(config, np.array(train.used))),
        ]
    return [*facts, *train.figures.facts()]


def _with_lines(counts: Counts, reason: str) -> str:
    return f"{counts.left_out[reason]:,}, such as {counts.lines[reason][0]}"


def _filled(config: Config, used: np.ndarray) -> str:
    row = config.train.sequence_length
    alone = f"{used.sum() / (row * len(used)):.1%} of rows of one example"
    if not config.packing:
        return alone
    rows = len(packed(used.tolist(), row))
    return f"{used.sum() / (row * rows):.1%} of {rows:,} packed rows ({alone})"


def _histogram(lengths: Sequence[int]) -> list[tuple[str, int]]:
    if not lengths:
        return []
    counts, edges = np.histogram(lengths, BARS)
    return [
        (f"{int(np.ceil(start)):,} to {int(np.ceil(stop)) - (place < BARS - 1):,}", int(count))
        for place, (start, stop, count) in enumerate(zip(edges, edges[1:], counts))
    ]


def _doubts(train: _Split, validation: _Split) -> Iterator[str]:
    """What is odd about any task's examples."""
    counts = train.counts
    if not counts.examples:
        yield "there is no example to train on"
        return
    if counts.learned < counts.tokens / 100:
        yield f"only {counts.learned / counts.tokens:.2%} of the tokens are learned"
    if 10 * counts.examples < 9 * counts.records:
        yield f"{1 - counts.examples / counts.records:.0%} of the records are left out"
    known = set(train.hashes)
    if len(known) < len(train.hashes):
        yield f"{len(train.hashes) - len(known):,} training examples are there more than once"
    both = sum(one in known for one in validation.hashes)
    if both:
        yield f"{both:,} of {len(validation.hashes):,} validation examples are training examples too"
    yield from train.figures.doubts()
    yield from train.figures.shared_prompts(validation.figures)
    for note, times in counts.notes.items():
        if times > counts.examples / 100:
            yield f"{note}: {times:,} of {counts.examples:,} examples"
