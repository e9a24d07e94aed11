"""The hooks that every task has."""

from pathlib import Path

from llmscale.config.schema import Config
from llmscale.runtime.beats import BeatWriter, beats_folder
from llmscale.runtime.events import EventHook
from llmscale.runtime.hooks import Hook, Hooks
from llmscale.runtime.metrics import MetricsWriter
from llmscale.runtime.parts import PartFile
from llmscale.runtime.sample_file import SampleFile
from llmscale.runtime.wandb_hook import WandbHook, wandb_mode


def standard_hooks(config: Config, folder: Path, rank: int) -> Hooks:
    """Beats for the agent, if it looks for them; metrics, events and wandb on rank 0; and of a task whose
    steps have parts, what it is at."""
    beats = beats_folder()
    hooks: list[Hook] = [BeatWriter(beats, rank)] if beats else []
    if rank:
        return Hooks(hooks)
    hooks += [MetricsWriter(folder, config.logging.every), EventHook(folder)]
    if config.task == "rlhf":
        hooks += [PartFile(folder), SampleFile(folder)]
    mode = wandb_mode(config)
    if mode != "off":
        hooks.append(WandbHook(config, folder, mode))
    return Hooks(hooks)
