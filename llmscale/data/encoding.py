"""What makes examples of records, whatever the task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Literal, Protocol, get_args

from pydantic import JsonValue

from llmscale.config.schema import Config
from llmscale.data.examples import Example
from llmscale.data.records import Record

Reason = Literal["bad", "empty", "too_long", "nothing_learned", "identical"]
REASONS: tuple[Reason, ...] = get_args(Reason)

RECORD_ENCODERS = {
    "sft": "llmscale.data.chat.encode:record_encoder",
    "classify": "llmscale.data.labelled:record_encoder",
    "reward": "llmscale.data.preferences.encode:record_encoder",
    "dpo": "llmscale.data.preferences.encode:record_encoder",
}
"""Task -> function of the config."""


@dataclass(frozen=True)
class LeftOut:
    """A record that is not trained on."""

    reason: Reason
    message: str
    """In full, as far as it tells more than the reason."""


@dataclass(frozen=True)
class Encoded:
    """A record that is trained on."""

    example: Example
    notes: tuple[str, ...] = ()
    """What happened to it: `truncated`, …; they are counted."""
    shown: Example | None = None
    """For a reader, where that is not `example`: without what only a head needs, and as learned what is
    judged."""

    @property
    def visible(self) -> Example:
        return self.shown or self.example


class RecordEncoder(Protocol):
    """Records in, examples out."""

    @property
    def key(self) -> Mapping[str, JsonValue]:
        """All that the examples depend on beside the records: other examples, another key."""
        ...

    def encode(self, records: Sequence[Record], fields: Mapping[str, str]) -> Sequence[Encoded | LeftOut]:
        """What becomes of each record.

        Args:
            fields: what the fields are called in the records, where it is not by the names of the task.
        """
        ...


def record_encoder(config: Config) -> RecordEncoder:
    """The encoder of `config.task`.

    Raises:
        InputError: tokenizer, template or labels cannot be used.
    """
    module, _, function = RECORD_ENCODERS[config.task].partition(":")
    return getattr(import_module(module), function)(config)
