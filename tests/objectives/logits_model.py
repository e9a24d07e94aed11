"""A stand-in for a model chunk whose logits a test makes itself."""

from types import SimpleNamespace
from typing import Any


def logits_model(vocabulary_size: int) -> Any:
    """On one rank, without padding."""
    return SimpleNamespace(
        vocab_size=vocabulary_size,
        true_vocabulary_size=vocabulary_size,
        leaves_logits=lambda _: False,
        world=SimpleNamespace(
            coordinates=SimpleNamespace(tensor=0), tensor_group=SimpleNamespace(size=lambda: 1)
        ),
    )
