"""The valid name that an unknown one was probably meant to be."""

import difflib
from collections.abc import Iterator, Sequence
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel

from llmscale.config.schema import Config


def nearest(name: str, known: Sequence[str], what: str) -> str:
    """`unknown preset; did you mean tiny?`, or all there are."""
    close = difflib.get_close_matches(name, known, 1, 0.5)
    if close:
        return f"unknown {what}; did you mean {close[0]}?"
    return f"unknown {what}; there are: {', '.join(known)}"


def nearest_key(location: Sequence[str], model: type[BaseModel] = Config) -> str:
    """A key beside the unknown one, or the same name in another section, or all that are beside it."""
    parents, leaf = location[:-1], location[-1]
    siblings = _fields_at(model, parents)
    close = difflib.get_close_matches(leaf, siblings, 1, 0.6)
    elsewhere = [".".join(path) for path in all_keys(model) if path[-1] == leaf]
    if elsewhere:
        return f"unknown key; did you mean {elsewhere[0]}?"
    if close:
        return f"unknown key; did you mean {'.'.join([*parents, close[0]])}?"
    return nearest(leaf, siblings, "key")


def all_keys(model: type[BaseModel], prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, field in model.model_fields.items():
        inner = next(_models_in(field.annotation), None)
        if inner is None:
            yield (*prefix, name)
        else:
            # In a section of names that users give, any may stand.
            own = (name, "NAME") if get_origin(field.annotation) is dict else (name,)
            yield from all_keys(inner, (*prefix, *own))


def _fields_at(model: type[BaseModel], location: Sequence[str]) -> list[str]:
    parts = iter(location)
    for part in parts:
        if part.isdigit():
            continue
        field = model.model_fields.get(part)
        inner = next(_models_in(field.annotation), None) if field else None
        if field is None or inner is None:
            return []
        if get_origin(field.annotation) is dict:
            next(parts, None)  # a name of the user's
        model = inner
    return list(model.model_fields)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, UnionType, list, tuple, dict):
        for argument in get_args(annotation):
            yield from _models_in(argument)
