"""From a YAML file and `key=value` overrides to a `Config`, or to every problem in them at once."""

import os
import tempfile
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from llmscale.config.checks import check_config
from llmscale.config.nearest import nearest_key
from llmscale.config.presets import merge_presets
from llmscale.config.problems import InputError, Problem
from llmscale.config.schema import Config
from llmscale.config.sweep import check_sweep, combinations
from llmscale.config.tree import Tree, apply_override, expand_shorthands, read_tree, remove, set_value

# PyYAML's parser in C, ten times as fast, where it was built with it.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


@dataclass(frozen=True)
class Variant:
    """One run of a sweep."""

    changes: dict[str, Any]
    """Its keys of the sweep, with its values."""
    config: Config
    """Named NAME-0000, NAME-0001, …; itself without a sweep."""


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read `path`, apply `overrides` (`train.lr=3e-4`), fill in presets and check it all.

    Raises:
        InputError: with every problem of the file, the overrides and their combination; of a sweep, with
            those of every run.
    """
    tree, config = _load(path, overrides)
    if config.sweep:
        _variants(tree, config)
    return config


def load_variants(path: Path, overrides: Sequence[str] = ()) -> list[Variant]:
    """The runs of a config with a sweep, in the order of their numbers.

    Raises:
        InputError: as `load_config`.
    """
    return _variants(*_load(path, overrides))


def with_overrides(config: Config, overrides: Sequence[str]) -> Config:
    """`config` with `overrides` applied; the rules over several keys are not asked.

    Raises:
        InputError: with every problem of the overrides.
    """
    tree: Tree = config.model_dump(mode="json")
    problems = [problem for override in overrides if (problem := apply_override(tree, override))]
    changed, found = _validate(tree)
    if problems or found or changed is None:
        raise InputError([*problems, *found])
    return changed


def read_resolved(path: Path) -> Config:
    """The `config.yaml` of a run folder, as `write_resolved` left it."""
    return Config.model_validate(yaml.load(path.read_text(), _Loader))


def write_resolved(config: Config, path: Path) -> None:
    """Write the resolved config so that it is whole or absent, never half there."""
    text = yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    Path(temporary).chmod(0o644)
    Path(temporary).replace(path)


def resolve(tree: Tree, default_name: str) -> tuple[Config | None, list[Problem]]:
    """The config that `tree` makes with its presets, and everything against it."""
    tree = deepcopy(tree)
    problems = merge_presets(tree)
    config, found = _validate(tree)
    problems += found
    if config is not None:
        config = _with_run_name(config, default_name)
        problems += check_config(config)
    return config, problems


def as_problem(details: Any, model: type[BaseModel] = Config) -> Problem:
    """What pydantic says of one key of `model`, in our words."""
    location = [str(part) for part in details["loc"]]
    key = ".".join(location)
    if details["type"] == "extra_forbidden":
        return Problem(key, details["input"], nearest_key(location, model))
    message = details["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    return Problem(key, details["input"], message[0].lower() + message[1:])


def _load(path: Path, overrides: Sequence[str]) -> tuple[Tree, Config]:
    """The tree before presets, which a sweep changes, and the config that it makes."""
    tree = expand_shorthands(read_tree(path))
    problems = [problem for override in overrides if (problem := apply_override(tree, override))]
    config, found = resolve(tree, path.stem)
    problems += found
    if config is not None:
        problems += check_sweep(config)
    if problems or config is None:
        raise InputError(problems)
    return tree, config


def _variants(tree: Tree, base: Config) -> list[Variant]:
    """
    Raises:
        InputError: what is wrong with any of them; what several share is said once.
    """
    variants: list[Variant] = []
    problems: dict[str, Problem] = {}
    for number, changes in enumerate(combinations(base.sweep)):
        changed = deepcopy(tree)
        for key, value in changes.items():
            set_value(changed, key, value)
        changed["sweep"] = {}
        set_value(changed, "run.name", f"{base.run.name}-{number:04d}")
        config, found = resolve(changed, "")
        problems |= {str(problem): problem for problem in found}
        if config is not None:
            variants.append(Variant(changes, config))
    if problems:
        raise InputError(list(problems.values()))
    return variants


def _validate(tree: Tree) -> tuple[Config | None, list[Problem]]:
    """The config, and what pydantic found. Bad keys are left out and the rest tried again, so that
    the rules over several keys can speak too."""
    try:
        return Config.model_validate(tree), []
    except ValidationError as error:
        problems = [as_problem(details) for details in error.errors()]
        for details in error.errors():
            remove(tree, details["loc"])
        try:
            return Config.model_validate(tree), problems
        except ValidationError:
            return None, problems


def _with_run_name(config: Config, name: str) -> Config:
    if config.run.name:
        return config
    run = config.run.model_copy(update={"name": name})
    return config.model_copy(update={"run": run})
