"""A config before it is checked: nested mappings from a YAML file, with `key=value` overrides applied."""

from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, cast

import yaml

from llmscale.config.problems import InputError, Problem
from llmscale.config.schema import Config, Section
from llmscale.config.yaml_text import parse_yaml

Tree = dict[str, Any]


def read_tree(path: Path, what: str = "sections, such as `train: {steps: 100}`") -> Tree:
    """The mapping in a YAML file; empty for an empty file.

    Raises:
        InputError: there is no such file, or no mapping in it.
    """
    try:
        tree = parse_yaml(path.read_text())
    except FileNotFoundError:
        raise InputError([Problem("CONFIG", path, "no such file")]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError([Problem("CONFIG", path, f"cannot be read: {error}")]) from None
    except yaml.YAMLError as error:
        raise InputError([Problem("CONFIG", path, f"is not YAML: {error}")]) from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise InputError([Problem("CONFIG", path, f"must be a mapping of {what}")])
    return cast(Tree, tree)


def expand_shorthands(tree: Tree) -> Tree:
    """`cluster: slurm` becomes `cluster: {kind: slurm}`, so that overrides and presets can go into it."""
    expanded = dict(tree)
    for name, section in _sections().items():
        if name in expanded:
            expanded[name] = section.expand(expanded[name])
    return expanded


def apply_override(tree: Tree, override: str) -> Problem | None:
    """Put `key=value` into `tree`."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        return Problem(override, "", "an override is written key=value, such as train.steps=100")
    try:
        value = parse_yaml(text)
    except yaml.YAMLError:
        return Problem(key, text, "is not a YAML value; put quotes around text that YAML would read as more")
    set_value(tree, key, value)
    return None


def set_value(tree: Tree, key: str, value: Any) -> None:
    """Put `value` at the dotted `key`; mappings on the way are made, anything else there is replaced."""
    *parents, leaf = key.split(".")
    if parents and parents[0] == "sweep":  # whose keys have dots themselves
        parents, leaf = ["sweep"], key.partition(".")[2]
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


def remove(tree: Tree, location: Sequence[str | int]) -> None:
    """Take a bad value out; one inside a list goes with the whole list."""
    keys = list(takewhile(lambda part: isinstance(part, str), location))
    node: Any = tree
    for key in keys[:-1]:
        node = cast(Tree, node).get(str(key)) if isinstance(node, dict) else None
    if isinstance(node, dict) and keys:
        cast(Tree, node).pop(str(keys[-1]), None)


def _sections() -> dict[str, type[Section]]:
    return {
        name: field.annotation
        for name, field in Config.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
    }
