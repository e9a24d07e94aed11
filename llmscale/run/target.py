"""What a user means by TARGET: the model, its weights and its tokenizer. No torch."""

from dataclasses import dataclass
from pathlib import Path

import yaml

from llmscale.checkpoint.errors import CheckpointError
from llmscale.checkpoint.manifest import MANIFEST
from llmscale.checkpoint.store import Checkpoint, locate
from llmscale.config.checks import check_config
from llmscale.config.load import read_resolved
from llmscale.config.problems import InputError, Problem
from llmscale.config.schema import Config, ParallelSection, ZeroSection
from llmscale.data.tokenizer import end_of_document_id, tokenizer_hash, vocabulary_size
from llmscale.runtime.run_folder import CONFIG_NAME, run_folders


@dataclass(frozen=True)
class Target:
    """A trained model, and the layout it is to be used under."""

    config: Config
    """Of its run, with that layout."""
    weights: Path
    """Run folder or checkpoint."""
    tokenizer: Path
    vocabulary_size: int

    @property
    def ranks(self) -> int:
        return self.config.world_size

    @property
    def positions(self) -> int:
        """Tokens that a text may have."""
        return self.config.model.max_positions or self.config.train.sequence_length


def find_target(
    target: str, root: Path, tokenizer: Path | None = None, tensor: int = 1, pipeline: int = 1
) -> Target:
    """The model in the run folder or checkpoint `target`, or in the run of that name under `root`.

    Args:
        target: what the user wrote.
        root: folder that holds the run folders.
        tokenizer: the tokenizer's folder, where it is not the one that the run's config names.
        tensor: ranks that shall share each matrix.
        pipeline: stages that the layers shall be cut into.

    Raises:
        InputError: no such model, or it cannot be used so.
    """
    folder, run = _find_folder(target, root)
    newest = _newest_checkpoint(target, folder)
    config = _with_layout(_read_config(run / CONFIG_NAME), tensor, pipeline)
    tokenizer = tokenizer or config.tokenizer.path
    problems = [problem for problem in check_config(config) if problem.key.startswith("parallel.")]
    if tokenizer is None:
        message = "the run names no tokenizer: give the one that its corpus was made with"
        raise InputError([*problems, Problem("--tokenizer", "", message)])
    try:
        problems += _tokenizer_problems(tokenizer, newest, config.model.vocabulary_size)
    except InputError as error:
        problems += error.problems
    if problems:
        raise InputError(problems)
    return Target(config, folder, tokenizer, config.model.vocabulary_size or vocabulary_size(tokenizer))


def _find_folder(target: str, root: Path) -> tuple[Path, Path]:
    """The folder that is meant, and that of its run."""
    folders = [folder for folder in (Path(target), root / target) if folder.is_dir()]
    for folder in folders:
        for run in (folder, *folder.absolute().parents[:2]):
            if (run / CONFIG_NAME).is_file():
                return folder, run
    for folder in folders:
        if (folder / MANIFEST).is_file():
            message = f"its run's {CONFIG_NAME} is missing: keep it two folders above the checkpoint"
            raise InputError([Problem("TARGET", target, message)])
        if (folder / "config.json").is_file():
            message = (
                "is a Hugging Face folder, which this version cannot read yet; name a run or a checkpoint"
            )
            raise InputError([Problem("TARGET", target, message)])
    known = ", ".join(sorted(path.name for path in run_folders(root))) or "none"
    raise InputError([Problem("TARGET", target, f"no such run or checkpoint; runs under {root}: {known}")])


def _newest_checkpoint(target: str, folder: Path) -> Checkpoint:
    try:
        found = locate(folder)
    except CheckpointError:
        message = "has no checkpoint yet: train on, or set checkpoint.every"
        raise InputError([Problem("TARGET", target, message)]) from None
    committed = [checkpoint for checkpoint in found if checkpoint.state == "committed"]
    if not committed:
        raise InputError([Problem("TARGET", target, f"{found[-1].path.name} {found[-1].reason}")])
    return committed[-1]


def _read_config(path: Path) -> Config:
    try:
        return read_resolved(path)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError([Problem("TARGET", path, f"is no resolved config of a run: {error}")]) from None


def _with_layout(config: Config, tensor: int, pipeline: int) -> Config:
    cluster = config.cluster.model_copy(update={"nodes": 1, "processes_per_node": tensor * pipeline})
    parallel = ParallelSection(tensor=tensor, pipeline=pipeline)
    return config.model_copy(update={"parallel": parallel, "zero": ZeroSection(), "cluster": cluster})


def _tokenizer_problems(tokenizer: Path, checkpoint: Checkpoint, model_size: int | None) -> list[Problem]:
    """What tells that these weights were not trained on this tokenizer's tokens."""
    size = vocabulary_size(tokenizer)
    end_of_document_id(tokenizer)
    expected = checkpoint.manifest.description.get("tokenizer_hash") if checkpoint.manifest else None
    if expected is not None and tokenizer_hash(tokenizer) != expected:
        return [Problem("--tokenizer", tokenizer, "is not the tokenizer that the model was trained with")]
    if model_size is not None and size > model_size:
        return [Problem("--tokenizer", tokenizer, f"has more than the model's {model_size:,} tokens")]
    return []
