"""What stands against conversations and answers, told before any rank starts. Without torch."""

from collections.abc import Callable, Iterator, Mapping

from llmscale.config.problems import InputError, Problem
from llmscale.config.schema import Config
from llmscale.data.chat.template import template_of
from llmscale.data.encoding import LeftOut, record_encoder
from llmscale.data.records import Record
from llmscale.data.tokenizer import end_of_document_id


def setup_problems(config: Config) -> Iterator[Problem]:
    """Of tokenizer and template."""
    tokenizer = config.tokenizer.path
    if tokenizer is None:
        return
    try:
        end_of_document_id(tokenizer)
        template_of(config, tokenizer)
    except InputError as error:
        yield from error.problems


def record_fault(config: Config) -> Callable[[Record, Mapping[str, str]], str | None]:
    """What is wrong with a record, by encoding it. One that is too long does not count: a file may be sorted
    by length."""
    try:
        encoder = record_encoder(config)
    except InputError:
        return lambda record, fields: None  # `setup_problems` has told

    def fault(record: Record, fields: Mapping[str, str]) -> str | None:
        [outcome] = encoder.encode([record], fields)
        if isinstance(outcome, LeftOut) and outcome.reason != "too_long":
            return outcome.message
        return None

    return fault
