"""The hooks that every task has."""

from pathlib import Path

from llmscale.config.schema import Config
from llmscale.runtime.events import EventHook
from llmscale.runtime.hooks import Hook, Hooks
from llmscale.runtime.metrics import MetricsWriter
from llmscale.runtime.wandb_hook import WandbHook, wandb_mode


def standard_hooks(config: Config, folder: Path, rank: int) -> Hooks:
    """Metrics, events and wandb on rank 0; nothing on the others."""
    if rank:
        return Hooks([])
    hooks: list[Hook] = [MetricsWriter(folder, config.logging.every), EventHook(folder)]
    mode = wandb_mode(config)
    if mode != "off":
        hooks.append(WandbHook(config, folder, mode))
    return Hooks(hooks)
