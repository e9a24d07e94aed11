"""What stands against `train.init_from`, told before any rank starts. No torch."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from llmscale.checkpoint.base import REFERENCE, Base, find_base, newest_committed
from llmscale.checkpoint.errors import CheckpointError
from llmscale.checkpoint.huggingface_folder import is_hugging_face_folder, open_folder
from llmscale.checkpoint.store import locate
from llmscale.checkpoint.tuned import PEFT, VOCABULARY, not_mergeable, tuning_options, tuning_problems
from llmscale.config.load import read_resolved
from llmscale.config.problems import InputError, Problem
from llmscale.config.schema import Config, ModelSection
from llmscale.data.checks import resolved_vocabulary_size
from llmscale.data.tokenizer import TOKENIZER, open_encoder, tokenizer_hash
from llmscale.model.families.table import family
from llmscale.model.tensors import EMBEDDING, POSITIONS
from llmscale.run.export_head import head_of
from llmscale.runtime.run_folder import CONFIG_NAME

ARCHITECTURE: dict[str, Callable[[ModelSection], object]] = {
    "model.family": lambda model: model.family,
    "model.hidden_size": lambda model: model.hidden_size,
    "model.layers": lambda model: model.layers,
    "model.heads": lambda model: model.heads,
    "model.kv_heads": lambda model: model.kv_heads_or_default,
    "model.head_size": lambda model: model.head_size_or_default,
    "model.ffn_size": lambda model: model.ffn_size_or_default,
    "model.tie_embeddings": lambda model: model.tie_embeddings_or_default,
    "model.norm_epsilon": lambda model: model.norm_epsilon,
}
"""What weights stand on."""
MAY_CHANGE: dict[str, Callable[[ModelSection], object]] = {
    "rope_base": lambda model: model.rope_base,
    "rope_scaling": lambda model: model.rope_scaling,
    "sliding_window": lambda model: model.sliding_window,
}
"""Changed on purpose, that is how contexts grow; but not by leaving the key out."""


@dataclass(frozen=True)
class Origin:
    """Where weights come from."""

    place: Path
    model: ModelSection
    vocabulary_size: int
    learned_positions: int | None
    tokenizer: Path | None
    """Folder of the tokenizer whose tokens the weights know, where it can be found."""
    tokenizer_hash: str | None
    has_head: bool
    """Scores texts, and has no output layer to write with."""


def check_init_from(config: Config, before: Mapping[Path, Config] | None = None) -> list[Problem]:
    """Problems of what `train.init_from` names; none where it names nothing.

    Args:
        config: of the run.
        before: runs that will have filled their folders by then; what they leave is told from their configs.
    """
    source = config.train.init_from
    if source is None:
        return []
    try:
        origin = _origin(source, before or {})
    except CheckpointError as error:
        return [Problem("train.init_from", source, str(error))]
    except InputError as error:
        return error.problems
    return [
        *_head_problems(config, source, origin, before or {}),
        *_architecture_problems(config, origin),
        *_vocabulary_problems(config, origin),
        *_tokenizer_problems(config, origin),
    ]


def check_scorer(config: Config, source: Path, key: str, before: Mapping[Path, Config]) -> Iterator[Problem]:
    """What stands against scoring texts of this run by the model in `source`, which the config's `key` names:
    it must have a head of one score, and know the same tokens."""
    try:
        origin = _origin(source, before)
    except CheckpointError as error:
        yield Problem(key, source, str(error))
        return
    except InputError as error:
        yield from (Problem(key, source, problem.message) for problem in error.problems)
        return
    if not origin.has_head:
        yield Problem(key, source, "has no head that scores texts; name a run of task=reward")
    path = config.tokenizer.path
    if path is None or not (path / TOKENIZER).is_file() or origin.tokenizer_hash is None:
        return
    theirs = origin.tokenizer
    is_same = tokenizer_hash(path) == origin.tokenizer_hash or (
        theirs is not None and _extends(path, theirs) and _extends(theirs, path)
    )
    if not is_same:
        message = (
            f"knows the tokens of another tokenizer (SHA-256 {origin.tokenizer_hash[:12]}…) than "
            f"tokenizer.path = {path}, and is asked in tokens; train one with that tokenizer"
        )
        yield Problem(key, source, message)


def check_base(config: Config) -> list[Problem]:
    """What stands against going on with a run, as far as it has trained few weights on top of a base: another
    method, other options, or a base that has gone. Whether a Hugging Face folder still has the same weights
    is told when they are read."""
    newest = newest_committed(config.run_folder)
    if newest is None or newest.manifest is None:
        return []
    found = newest.manifest.description
    problems = list(tuning_problems(config.peft, None, found))
    base = Base.in_description(found) or Base.in_description(found, REFERENCE)
    source = config.train.init_from
    if problems or base is None or source is None or is_hugging_face_folder(source):
        return problems
    try:
        find_base(source, base)
    except CheckpointError as error:
        return [Problem("train.init_from", source, str(error))]
    except InputError as error:
        return error.problems
    return []


def scores_texts(source: Path) -> bool:
    """What lies there has a head in place of an output layer.

    Raises:
        CheckpointError, InputError: nothing is there that can be read.
    """
    return _origin(source, {}).has_head


def _origin(source: Path, before: Mapping[Path, Config]) -> Origin:
    if source.absolute() in before:
        return _planned_origin(source, before[source.absolute()])
    if not source.exists():
        raise CheckpointError("is not there; name a run, a checkpoint or a Hugging Face folder")
    return _folder_origin(source) if is_hugging_face_folder(source) else _checkpoint_origin(source)


def _planned_origin(source: Path, config: Config) -> Origin:
    """The weights that a run of `config` will leave in `source`."""
    problem = not_mergeable(source, {PEFT: tuning_options(config.peft)}, "train.init_from")
    if problem:
        raise InputError([problem])
    tokenizer, model = config.tokenizer.path, config.model
    is_there = tokenizer is not None and (tokenizer / TOKENIZER).is_file()
    return Origin(
        place=source,
        model=model,
        vocabulary_size=resolved_vocabulary_size(config),
        learned_positions=(model.max_positions or config.train.sequence_length)
        if model.family == "gpt2"
        else None,
        tokenizer=tokenizer if is_there else None,
        tokenizer_hash=tokenizer_hash(tokenizer) if tokenizer is not None and is_there else None,
        has_head=config.outputs is not None,
    )


def _folder_origin(source: Path) -> Origin:
    found = open_folder(source)
    model = found.model
    assert model.vocabulary_size is not None
    has_tokenizer = (source / TOKENIZER).is_file()
    return Origin(
        place=source,
        model=model,
        vocabulary_size=model.vocabulary_size,
        learned_positions=model.max_positions if model.family == "gpt2" else None,
        tokenizer=source if has_tokenizer else None,
        tokenizer_hash=tokenizer_hash(source) if has_tokenizer else None,
        has_head=found.outputs is not None,
    )


def _checkpoint_origin(source: Path) -> Origin:
    """
    Raises:
        CheckpointError: no committed checkpoint.
    """
    committed = [checkpoint for checkpoint in locate(source) if checkpoint.state == "committed"]
    if not committed or committed[-1].manifest is None:
        raise CheckpointError("has no committed checkpoint")
    newest, manifest = committed[-1], committed[-1].manifest
    problem = not_mergeable(newest.path, manifest.description, "train.init_from")
    if problem:
        raise InputError([problem])
    model = ModelSection.model_validate(manifest.description["model"])
    names = family(model.family).names
    rows = {
        key: manifest.tensors[name].shape[0]
        for key in (EMBEDDING, POSITIONS)
        for name in names.get(key, ())
        if name in manifest.tensors
    }
    known = manifest.description.get("tokenizer_hash")
    base = Base.in_description(manifest.description)
    if base is not None:
        base.check_presence()
        under = _origin(base.path, {})
        rows = {EMBEDDING: int(str(manifest.description[VOCABULARY])), POSITIONS: under.learned_positions}
    return Origin(
        place=newest.path,
        model=model,
        vocabulary_size=rows.get(EMBEDDING) or 0,
        learned_positions=rows.get(POSITIONS),
        tokenizer=_run_tokenizer(newest.path, known),
        tokenizer_hash=str(known) if known else None,
        has_head=head_of(manifest.description) is not None,
    )


def _run_tokenizer(checkpoint: Path, known_hash: object) -> Path | None:
    """The tokenizer that a checkpoint's run was trained with, if it is still there and the same."""
    try:
        path = read_resolved(checkpoint.absolute().parents[1] / CONFIG_NAME).tokenizer.path
        return path if path is not None and tokenizer_hash(path) == known_hash else None
    except (OSError, ValueError, InputError):
        return None


def _head_problems(
    config: Config, source: Path, origin: Origin, before: Mapping[Path, Config]
) -> Iterator[Problem]:
    """A model that writes cannot begin from one that scores; the other way round the head is new."""
    if not origin.has_head or config.outputs is not None:
        return
    planned = before.get(source.absolute())
    begun = None if planned is None else planned.train.init_from
    message = (
        "has a head that scores texts in place of an output layer (task: reward or classify), and "
        f"task={config.task} needs a model that writes; name what it began from itself"
    )
    yield Problem("train.init_from", source, message if begun is None else f"{message}: {begun}")


def _architecture_problems(config: Config, origin: Origin) -> Iterator[Problem]:
    ours, theirs = config.model, origin.model
    for key, value in ARCHITECTURE.items():
        if value(ours) != value(theirs):
            message = f"is {value(theirs)} in {origin.place}, which train.init_from names"
            yield Problem(key, value(ours), message)
    for key, value in MAY_CHANGE.items():
        if value(ours) != value(theirs) and key not in ours.model_fields_set:
            message = (
                f"is {value(theirs)} in {origin.place}, which train.init_from names: set it, to that or, on "
                "purpose, to something else"
            )
            yield Problem(f"model.{key}", value(ours), message)
    positions = ours.max_positions or config.train.sequence_length
    if origin.learned_positions and ours.family == theirs.family and positions != origin.learned_positions:
        message = f"{origin.place} has learned {origin.learned_positions} positions; set it to that"
        yield Problem("model.max_positions", positions, message)


def _vocabulary_problems(config: Config, origin: Origin) -> Iterator[Problem]:
    try:
        rows = resolved_vocabulary_size(config)
    except InputError:  # told by the checks of data and config
        return
    if rows < origin.vocabulary_size:
        message = (
            f"{origin.place} has {origin.vocabulary_size:,} tokens, and a vocabulary does not shrink: "
            f"set it to {origin.vocabulary_size} (rows beyond the tokenizer's tokens do no harm)"
        )
        yield Problem("model.vocabulary_size", rows, message)


def _tokenizer_problems(config: Config, origin: Origin) -> Iterator[Problem]:
    path = config.tokenizer.path
    if path is None or not (path / TOKENIZER).is_file():  # a problem of its own, or none
        return
    if origin.tokenizer_hash is None or tokenizer_hash(path) == origin.tokenizer_hash:
        return
    if origin.tokenizer is not None and _extends(path, origin.tokenizer):
        return
    message = (
        f"is not the tokenizer (SHA-256 {origin.tokenizer_hash[:12]}…) whose tokens train.init_from's "
        "weights know, nor that one with tokens added"
    )
    yield Problem("tokenizer.path", path, message)


def _extends(longer: Path, shorter: Path) -> bool:
    """Every token of `shorter` has the same id in `longer`."""
    try:
        known, now = (open_encoder(path).get_vocab(with_added_tokens=True) for path in (shorter, longer))
    except InputError:
        return False
    return known.items() <= now.items()
