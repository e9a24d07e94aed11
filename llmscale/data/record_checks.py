"""What is wrong with the records that a config names, told by the first of them. Without torch."""

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from itertools import islice

from llmscale.config.problems import Problem
from llmscale.config.schema import Config, CorpusEntry
from llmscale.data.records import Record, Unreadable, record_source
from llmscale.data.sources import HUB_PREFIX, BadText

FIRST = 100
"""Records that are looked at."""

Fault = Callable[[Record, Mapping[str, str]], str | None]
"""What is wrong with a record whose fields are called so."""

FAULTS = {
    "sft": "llmscale.data.chat.checks:record_fault",
    "classify": "llmscale.data.labelled_checks:record_fault",
    "reward": "llmscale.data.chat.checks:record_fault",
    "dpo": "llmscale.data.chat.checks:record_fault",
    "rlhf": "llmscale.data.prompt_records:record_fault",
}
"""Task -> function of the config that returns its `Fault`."""

SETUP = dict.fromkeys(("sft", "reward", "dpo", "rlhf"), "llmscale.data.chat.checks:setup_problems")
"""Task -> function of the config that tells what is wrong whatever the records are."""


def check_records(config: Config) -> Iterator[Problem]:
    """Every problem of what `config.task` needs beside the tokenizer's files."""
    if config.tokenizer.path is None:
        message = "is needed, because the records must become tokens; set it"
        yield Problem("tokenizer.path", None, message)
    elif config.task in SETUP and config.tokenizer.path.is_dir():  # else told by the tokenizer's checks
        yield from _function(SETUP[config.task])(config)
    if not config.data.train:
        yield Problem("data.train", [], "names no records to train on")
    fault: Fault = _function(FAULTS[config.task])(config)
    for section, entries in (("train", config.data.train), ("validation", config.data.validation)):
        for place, entry in enumerate(entries):
            message = _fault_of_source(entry, fault)
            if message is not None:
                yield Problem(f"data.{section}.{place}.path", entry.path, message)


def _fault_of_source(entry: CorpusEntry, fault: Fault) -> str | None:
    if str(entry.path).startswith(HUB_PREFIX):
        return None  # loading it may take minutes; the run tells
    try:
        first = list(islice(record_source(entry.path), FIRST))
    except BadText as error:
        return str(error)
    except OSError as error:
        return f"cannot be read: {error}"
    if not first:
        return "has no record"
    faults = []
    for line, record in first:
        found = record.message if isinstance(record, Unreadable) else fault(record, entry.fields)
        faults += [] if found is None else [f"line {line}: {found}"]
    if 2 * len(faults) <= len(first):
        return None
    return f"{len(faults)} of the first {len(first)} records cannot be used: {faults[0]}"


def _function(name: str):
    module, _, function = name.partition(":")
    return getattr(import_module(module), function)
