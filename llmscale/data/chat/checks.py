"""What stands against conversations, told before any rank starts. Without torch."""

from collections.abc import Iterator, Mapping

from llmscale.config.problems import InputError, Problem
from llmscale.config.schema import Config
from llmscale.data.chat.conversation import BadRecord, read_record
from llmscale.data.chat.template import chat_template
from llmscale.data.records import Record
from llmscale.data.tokenizer import end_of_document_id


def setup_problems(config: Config) -> Iterator[Problem]:
    """Of tokenizer and template."""
    tokenizer = config.tokenizer.path
    if tokenizer is None:
        return
    try:
        end_of_document_id(tokenizer)
        chat_template(tokenizer, config.sft.chat_template)
    except InputError as error:
        yield from error.problems


def fault_of_record(record: Record, fields: Mapping[str, str]) -> str | None:
    try:
        read_record(record, fields)
    except BadRecord as error:
        return str(error)
    return None
