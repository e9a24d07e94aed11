"""The models of a run, as groups of workers."""

from dataclasses import dataclass

from llmscale.rlhf.workers.group import Group


@dataclass(frozen=True)
class Models:
    actor: Group
    critic: Group | None = None
    reference: Group | None = None
    """None: there is no divergence to be told, or the actor tells it with its adapter off."""
    writer: Group | None = None
    """Writes the answers; None: the actor does."""
