"""The configuration reference as Markdown, made from the schema: `python -m llmscale.config.reference`."""

import sys
from collections.abc import Iterator
from typing import Any, cast

from llmscale.config.schema import Config

JsonSchema = dict[str, Any]

INTRODUCTION = """\
# Configuration

<!-- Made from llmscale/config/schema.py by `make docs`. Change it there. -->

A run is described by one YAML file; `key=value` after it on the command line overrides single keys:

```
llmscale train configs/pretrain/tiny.yaml train.steps=400 optimizer.lr=3e-4
```

An unknown key is refused, with the nearest valid one named. All that is wrong is listed at once, before
any process starts, with exit code 2. The resolved configuration of a run stands in its folder as
`config.yaml`. Rules over several keys are in [parallelism](parallelism.md).

`–` in the column *default* means that the key may be left out; its text then says what holds.
"""


def reference() -> str:
    """The whole page: a table for every section."""
    schema = Config.model_json_schema()
    parts = [INTRODUCTION]
    for name, field in schema["properties"].items():
        section = _referenced(schema, field)
        if section is None:
            parts.append(_lone_key(schema, name, field))
        else:
            parts.append("\n".join(_section(schema, name, section)))
    return "\n".join(parts)


def _lone_key(schema: JsonSchema, name: str, field: JsonSchema) -> str:
    """A key that is no section."""
    values = f"{_values(schema, field).capitalize()}; default {_code(field['default'])}."
    return "\n\n".join(part for part in (f"## {name}", values, field.get("description")) if part) + "\n"


def _section(schema: JsonSchema, name: str, section: JsonSchema) -> Iterator[str]:
    yield f"## {name}\n"
    if "description" in section:
        yield section["description"] + "\n"
    yield "| key | values | default | meaning |"
    yield "|---|---|---|---|"
    yield from _rows(schema, name, section)
    yield ""


def _rows(schema: JsonSchema, prefix: str, section: JsonSchema) -> Iterator[str]:
    """One row a key; a section within the section follows with its keys dotted."""
    for name, field in section["properties"].items():
        key = f"{prefix}.{name}"
        inner = _referenced(schema, field)
        meaning = field.get("description", "") or (inner or {}).get("description", "")
        if inner is None or "anyOf" in field:
            yield _row(f"`{key}`", _values(schema, field), _default(field), meaning)
        if inner is not None:
            yield from _rows(schema, key, inner)
        elif "items" in field and (entry := _referenced(schema, field["items"])) is not None:
            yield from _rows(schema, f"{key}[]", entry)


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _referenced(schema: JsonSchema, field: JsonSchema) -> JsonSchema | None:
    """The section that `field` is, or may be where it may be left out."""
    for option in field.get("anyOf", [field]):
        if "$ref" in option:
            return cast(JsonSchema, schema["$defs"][option["$ref"].rsplit("/", 1)[-1]])
    return None


def _values(schema: JsonSchema, field: JsonSchema) -> str:
    """What may stand there, in words."""
    options = [option for option in field.get("anyOf", [field]) if option.get("type") != "null"]
    return " or ".join(_value(schema, option) for option in options)


def _value(schema: JsonSchema, option: JsonSchema) -> str:
    if "enum" in option:
        return ", ".join(f"`{choice}`" for choice in option["enum"])
    if "const" in option:
        return f"`{option['const']}`"
    if "$ref" in option:
        return "section"
    if "prefixItems" in option:
        return f"list of {len(option['prefixItems'])}: {_value(schema, option['prefixItems'][0])} each"
    if "type" not in option:
        return "any value"
    if option["type"] == "array":
        return f"list of {_several(schema, option['items'])}"
    if option["type"] == "object":
        return f"mapping of names to {_several(schema, option['additionalProperties'])}"
    if option["type"] == "string":
        return "path" if option.get("format") == "path" else "text"
    names = {"integer": "whole number", "number": "number", "boolean": "`true`, `false`"}
    return names[option["type"]] + _bounds(option)


def _several(schema: JsonSchema, option: JsonSchema | bool) -> str:
    if isinstance(option, bool):
        return "any values"
    if option.get("type") == "array":
        return f"lists of {_several(schema, option['items'])}"
    return _value(schema, option) + "s"


def _bounds(option: JsonSchema) -> str:
    signs = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    bounds = [f"{sign} {option[name]}" for name, sign in signs.items() if name in option]
    return " " + ", ".join(bounds) if bounds else ""


def _default(field: JsonSchema) -> str:
    if "default" not in field:
        return "required"
    return "–" if field["default"] is None else _code(field["default"])


def _code(value: object) -> str:
    text = {True: "true", False: "false"}.get(value, str(value)) if isinstance(value, bool) else str(value)
    return f"`{text}`"


if __name__ == "__main__":
    sys.stdout.write(reference())
