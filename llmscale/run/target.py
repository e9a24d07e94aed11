"""What a user means by TARGET: the model, its weights and its tokenizer. No torch."""

from dataclasses import dataclass
from pathlib import Path

import yaml

from llmscale.checkpoint.base import on_moved_base
from llmscale.checkpoint.errors import CheckpointError
from llmscale.checkpoint.huggingface_folder import is_hugging_face_folder, open_folder
from llmscale.checkpoint.manifest import MANIFEST
from llmscale.checkpoint.store import Checkpoint, locate
from llmscale.config.checks import check_config
from llmscale.config.load import read_resolved
from llmscale.config.problems import InputError, Problem
from llmscale.config.schema import Config, ParallelSection, ZeroSection
from llmscale.data.tokenizer import TOKENIZER, end_of_document_id, tokenizer_hash, vocabulary_size
from llmscale.model.families.table import family
from llmscale.run.huggingface import folder_config, folder_tokenizer
from llmscale.runtime.run_folder import CONFIG_NAME, run_folders


@dataclass(frozen=True)
class Target:
    """A trained model, and the layout it is to be used under."""

    config: Config
    """Of its run, with that layout."""
    weights: Path
    """Run folder, checkpoint or Hugging Face folder."""
    tokenizer: Path
    vocabulary_size: int
    base: Path | None = None
    """Of a model trained with PEFT: where its base is, if it has moved."""

    @property
    def ranks(self) -> int:
        return self.config.world_size

    @property
    def positions(self) -> int:
        """Tokens that a text may have."""
        peft, is_learned = self.config.peft, not family(self.config.model.family).rotary
        # Rotary positions go on after a prefix.
        taken = peft.virtual_tokens if is_learned and peft.method == "prefix_tuning" else peft.placeholders
        return (self.config.model.max_positions or self.config.train.sequence_length) - taken


@dataclass(frozen=True)
class StoredModel:
    """A run's model as its newest committed checkpoint, or the checkpoint that was named, has it."""

    folder: Path
    """What was named."""
    config: Config
    checkpoint: Checkpoint
    tokenizer: Path | None
    """What the run's config names or, if that has gone, what lies in the run's folder."""


def find_target(
    target: str,
    root: Path,
    tokenizer: Path | None = None,
    tensor: int = 1,
    pipeline: int = 1,
    base: Path | None = None,
    scores: bool = False,
) -> Target:
    """The model in the run folder, checkpoint or Hugging Face folder `target`, or in the run of that name.

    Args:
        target: what the user wrote.
        root: folder that holds the run folders.
        tokenizer: the tokenizer's folder, where it is not the one that belongs to the model.
        tensor: ranks that shall share each matrix.
        pipeline: stages that the layers shall be cut into.
        base: of a model trained with PEFT: where its base is, if it has moved.
        scores: a reward model is wanted, and else one that writes.

    Raises:
        InputError: no such model, or it cannot be used so.
    """
    if is_hugging_face(Path(target)):
        found = open_folder(Path(target))
        tokenizer = tokenizer or folder_tokenizer(found.path)
        folder, config, expected = found.path, folder_config(found, "target", tokenizer), None
        outputs = found.outputs
        missing = f"{target} has no {TOKENIZER}: give the folder of the model's tokenizer"
        if base is not None:
            raise InputError([Problem("--base", base, f"is not needed: {target} has all of its weights")])
    else:
        model = find_model(target, root)
        folder, config, tokenizer = model.folder, model.config, tokenizer or model.tokenizer
        outputs = config.outputs
        assert model.checkpoint.manifest is not None
        expected = on_moved_base(model.checkpoint.manifest, base).description.get("tokenizer_hash")
        missing = "the run names no tokenizer: give the one that its corpus was made with"
    other_use = _other_use(config, outputs, scores)
    if other_use is not None:
        raise InputError([Problem("TARGET", target, other_use)])
    config = _with_layout(config, tensor, pipeline)
    problems = [problem for problem in check_config(config) if problem.key.startswith("parallel.")]
    if tokenizer is None:
        raise InputError([*problems, Problem("--tokenizer", "", missing)])
    try:
        problems += tokenizer_problems(tokenizer, expected, config.model.vocabulary_size)
        end_of_document_id(tokenizer)
    except InputError as error:
        problems += error.problems
    if problems:
        raise InputError(problems)
    return Target(config, folder, tokenizer, config.model.vocabulary_size or vocabulary_size(tokenizer), base)


def _other_use(config: Config, outputs: int | None, scores: bool) -> str | None:
    """What else than what is asked the model is for."""
    is_reward = config.task == "reward" and outputs == 1
    if scores:
        return None if is_reward else "is no reward model; train one with task=reward"
    if is_reward:
        return "scores answers and cannot write; `llmscale score` asks it for scores"
    if outputs is not None:
        way_out = "`llmscale checkpoint export` makes a folder that transformers classifies with"
        return f"tells labels of texts and cannot write; {way_out}"
    return None


def is_hugging_face(folder: Path) -> bool:
    """A Hugging Face folder and no run's."""
    return is_hugging_face_folder(folder) and not (folder / CONFIG_NAME).is_file()


def find_model(target: str, root: Path) -> StoredModel:
    """The model of the run folder or checkpoint `target`, or of the run of that name under `root`.

    Raises:
        InputError: there is none.
    """
    folder, run = _find_folder(target, root)
    newest = _newest_checkpoint(target, folder)
    config = _read_config(run / CONFIG_NAME)
    named, beside = config.tokenizer.path, run / "tokenizer"
    if (named is None or not named.is_dir()) and beside.is_dir():
        named = beside
    return StoredModel(folder, config, newest, named)


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
        if is_hugging_face_folder(folder):
            message = "is a Hugging Face folder; for this, name a run or a checkpoint"
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


def tokenizer_problems(tokenizer: Path, expected_hash: object, model_size: int | None) -> list[Problem]:
    """What tells that weights were not trained on this tokenizer's tokens."""
    size = vocabulary_size(tokenizer)
    if expected_hash is not None and tokenizer_hash(tokenizer) != expected_hash:
        return [Problem("--tokenizer", tokenizer, "is not the tokenizer that the model was trained with")]
    if model_size is not None and size > model_size:
        return [Problem("--tokenizer", tokenizer, f"has more than the model's {model_size:,} tokens")]
    return []
