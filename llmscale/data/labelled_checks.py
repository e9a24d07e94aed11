"""What stands against a labelled text, told before any rank starts. Without torch."""

from collections.abc import Callable, Mapping

from llmscale.config.schema import Config
from llmscale.data.records import Record

FIELDS = ("text", "label")


def record_fault(config: Config) -> Callable[[Record, Mapping[str, str]], str | None]:
    """What is wrong with a record; the same under every config."""
    return _fault


def _fault(record: Record, fields: Mapping[str, str]) -> str | None:
    missing = [name for name in FIELDS if record.get(fields.get(name, name)) is None]
    if not missing:
        return None
    there = ", ".join(record) or "(none)"
    absent = " and no ".join(missing)
    return f"has the fields {there}: no {absent}; data.train[].fields says what they are called"
