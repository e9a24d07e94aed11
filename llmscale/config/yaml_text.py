"""YAML as people mean it: `off` is a word, `3e-4` is a number, and a key stands once."""

import re
from collections.abc import Hashable
from typing import Any

import yaml


class DuplicateKey(yaml.YAMLError):
    """A mapping names the same key twice; one of the two would be lost in silence."""


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise DuplicateKey(f"the key {key.value!r} stands twice (line {key.start_mark.line + 1})")
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """YAML 1.1's rules, without its words for booleans and its base 60, and with floats that need no dot."""
    bool_tag, float_tag, int_tag = (f"tag:yaml.org,2002:{name}" for name in ("bool", "float", "int"))
    rules = {
        first: [(tag, pattern) for tag, pattern in found if tag not in (bool_tag, float_tag, int_tag)]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    boolean = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
    exponent = r"[eE][-+]?[0-9]+"
    number = re.compile(
        rf"^[-+]?(?:[0-9]+\.[0-9]*(?:{exponent})?|\.[0-9]+(?:{exponent})?|[0-9]+{exponent}|\.(?:inf|Inf|INF))$"
        r"|^\.(?:nan|NaN|NAN)$"
    )
    # Without its base 60, in which a time limit of 1:30:00 is the number 5400.
    integer = re.compile(r"^[-+]?(?:0b[0-1_]+|0x[0-9a-fA-F_]+|0[0-7_]*|[1-9][0-9_]*)$")
    for first in "-+0123456789":
        rules.setdefault(first, []).insert(0, (int_tag, integer))
    for first in "tTfF":
        rules.setdefault(first, []).insert(0, (bool_tag, boolean))
    for first in "-+0123456789.":
        rules.setdefault(first, []).insert(0, (float_tag, number))
    return rules


_Loader.yaml_implicit_resolvers = _resolvers()


def parse_yaml(text: str) -> Any:
    """
    Raises:
        yaml.YAMLError: the text is no YAML, or a key stands twice.
    """
    return yaml.load(text, _Loader)
