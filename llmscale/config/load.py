"""From a YAML file and `key=value` overrides to a `Config`, or to every problem in them at once."""

import difflib
import os
import tempfile
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from types import UnionType
from typing import Any, Union, cast, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from llmscale.config.checks import check_config
from llmscale.config.problems import InputError, Problem
from llmscale.config.schema import Config, ModelSection, Section
from llmscale.config.yaml_text import parse_yaml

Tree = dict[str, Any]

REPOSITORY_CONFIGS = Path(__file__).parents[2] / "configs"
INSTALLED_CONFIGS = Path(__file__).parents[1] / "configs"


def configs_folder() -> Path:
    """The shipped `configs/`: beside the package in a checkout, inside it in a wheel."""
    return REPOSITORY_CONFIGS if REPOSITORY_CONFIGS.is_dir() else INSTALLED_CONFIGS


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read `path`, apply `overrides` (`train.lr=3e-4`), fill in the model preset and check it all.

    Raises:
        InputError: with every problem of the file, the overrides and their combination.
    """
    tree, problems = _read_yaml(path)
    tree = _expand_shorthands(tree)
    for override in overrides:
        problem = _apply_override(tree, override)
        if problem:
            problems.append(problem)
    problems += _merge_preset(tree)
    config, schema_problems = _validate(tree)
    problems += schema_problems
    if config is not None:
        config = _with_run_name(config, path)
        problems += check_config(config)
    if problems or config is None:
        raise InputError(problems)
    return config


def with_overrides(config: Config, overrides: Sequence[str]) -> Config:
    """`config` with `overrides` applied; the rules over several keys are not asked.

    Raises:
        InputError: with every problem of the overrides.
    """
    tree: Tree = config.model_dump(mode="json")
    problems = [problem for override in overrides if (problem := _apply_override(tree, override))]
    changed, found = _validate(tree)
    if problems or found or changed is None:
        raise InputError([*problems, *found])
    return changed


def read_resolved(path: Path) -> Config:
    """The `config.yaml` of a run folder, as `write_resolved` left it."""
    return Config.model_validate(yaml.safe_load(path.read_text()))


def write_resolved(config: Config, path: Path) -> None:
    """Write the resolved config so that it is whole or absent, never half there."""
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    Path(temporary).chmod(0o644)
    Path(temporary).replace(path)


def _read_yaml(path: Path) -> tuple[Tree, list[Problem]]:
    try:
        tree = parse_yaml(path.read_text())
    except FileNotFoundError:
        raise InputError([Problem("CONFIG", path, "no such file")]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError([Problem("CONFIG", path, f"cannot be read: {error}")]) from None
    except yaml.YAMLError as error:
        raise InputError([Problem("CONFIG", path, f"is not YAML: {error}")]) from None
    if tree is None:
        return {}, []
    if not isinstance(tree, dict):
        message = "must be a mapping of sections, such as `train: {steps: 100}`"
        raise InputError([Problem("CONFIG", path, message)])
    return cast(Tree, tree), []


def _expand_shorthands(tree: Tree) -> Tree:
    """`cluster: slurm` becomes `cluster: {kind: slurm}`, so that overrides and presets can go into it."""
    expanded = dict(tree)
    for name, section in _sections().items():
        if name in expanded:
            expanded[name] = section.expand(expanded[name])
    return expanded


def _sections() -> dict[str, type[Section]]:
    return {
        name: field.annotation
        for name, field in Config.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
    }


def _apply_override(tree: Tree, override: str) -> Problem | None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        return Problem(override, "", "an override is written key=value, such as train.steps=100")
    try:
        value = parse_yaml(text)
    except yaml.YAMLError:
        return Problem(key, text, "is not a YAML value; put quotes around text that YAML would read as more")
    *parents, leaf = key.split(".")
    section = _sections().get(key)
    if section is not None and section.shorthand() and not isinstance(value, dict):
        expanded = section.expand(value)
        if not isinstance(expanded, dict):
            expanded = {section.shorthand(): value}
        ((leaf, value),) = cast(Tree, expanded).items()
        parents = [key]
    node = tree
    for part in parents:
        child = node.setdefault(part, {})
        if not isinstance(child, dict):
            child = node[part] = {}
        node = cast(Tree, child)
    node[leaf] = value
    return None


def _merge_preset(tree: Tree) -> list[Problem]:
    model = tree.get("model")
    if not isinstance(model, dict) or not isinstance(cast(Tree, model).get("preset"), str):
        return []
    model = cast(Tree, model)
    presets = {file.stem: file for file in sorted((configs_folder() / "model").glob("*.yaml"))}
    name = model["preset"]
    if name not in presets:
        return [Problem("model.preset", name, _nearest(name, list(presets), "preset"))]
    fields = cast(Tree, parse_yaml(presets[name].read_text()))
    tree["model"] = {**fields, **model}
    return []


def _validate(tree: Tree) -> tuple[Config | None, list[Problem]]:
    """The config, and what pydantic found. Bad keys are left out and the rest tried again, so that
    the rules over several keys can speak too."""
    try:
        return Config.model_validate(tree), []
    except ValidationError as error:
        problems = [_as_problem(details) for details in error.errors()]
        for details in error.errors():
            _remove(tree, details["loc"])
        try:
            return Config.model_validate(tree), problems
        except ValidationError:
            return None, problems


def _as_problem(details: Any) -> Problem:
    location = [str(part) for part in details["loc"]]
    key = ".".join(location)
    if details["type"] == "extra_forbidden":
        return Problem(key, details["input"], _nearest_key(location))
    message = details["msg"].replace("Input should be", "must be")
    return Problem(key, details["input"], message[0].lower() + message[1:])


def _nearest_key(location: list[str]) -> str:
    """A key beside the unknown one, or the same name in another section, or all that are beside it."""
    parents, leaf = location[:-1], location[-1]
    siblings = _fields_at(Config, parents)
    close = difflib.get_close_matches(leaf, siblings, 1, 0.6)
    elsewhere = [".".join(path) for path in _all_keys(Config) if path[-1] == leaf]
    if elsewhere:
        return f"unknown key; did you mean {elsewhere[0]}?"
    if close:
        return f"unknown key; did you mean {'.'.join([*parents, close[0]])}?"
    return _nearest(leaf, siblings, "key")


def _nearest(name: str, known: list[str], what: str) -> str:
    close = difflib.get_close_matches(name, known, 1, 0.5)
    if close:
        return f"unknown {what}; did you mean {close[0]}?"
    return f"unknown {what}; there are: {', '.join(known)}"


def _fields_at(model: type[BaseModel], location: Sequence[str]) -> list[str]:
    for part in location:
        if part.isdigit():
            continue
        field = model.model_fields.get(part)
        inner = next(_models_in(field.annotation), None) if field else None
        if inner is None:
            return []
        model = inner
    return list(model.model_fields)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, UnionType, list, tuple):
        for argument in get_args(annotation):
            yield from _models_in(argument)


def _all_keys(model: type[BaseModel], prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, field in model.model_fields.items():
        inner = next(_models_in(field.annotation), None)
        if inner is None:
            yield (*prefix, name)
        else:
            yield from _all_keys(inner, (*prefix, name))


def _remove(tree: Tree, location: Sequence[str | int]) -> None:
    """Take a bad value out; one inside a list goes with the whole list."""
    keys = list(takewhile(lambda part: isinstance(part, str), location))
    node: Any = tree
    for key in keys[:-1]:
        node = cast(Tree, node).get(str(key)) if isinstance(node, dict) else None
    if isinstance(node, dict) and keys:
        cast(Tree, node).pop(str(keys[-1]), None)


def _with_run_name(config: Config, path: Path) -> Config:
    if config.run.name:
        return config
    run = config.run.model_copy(update={"name": path.stem})
    return config.model_copy(update={"run": run})


def load_preset(name: str) -> ModelSection:
    """The model of `configs/model/NAME.yaml`."""
    tree: Tree = {"model": {"preset": name}}
    problems = _merge_preset(tree)
    if problems:
        raise InputError(problems)
    return ModelSection.model_validate(tree["model"])
