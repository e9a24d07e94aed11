"""How far a run has got, as far as checkpoints prove it. No torch."""

from pathlib import Path

from llmscale.checkpoint.store import Store


def committed_step(run_folder: Path) -> int | None:
    """Step of the newest committed checkpoint of a run, or None."""
    found = Store(run_folder / "checkpoints").checkpoints()
    return max((checkpoint.step for checkpoint in found if checkpoint.state == "committed"), default=None)
