"""A pipeline file: stages that train one after the other, each on what the one before it made."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import Field, ValidationError

from llmscale.config.load import as_problem, resolve
from llmscale.config.nearest import nearest
from llmscale.config.problems import InputError, Problem
from llmscale.config.schema import Config
from llmscale.config.section import Section
from llmscale.config.tree import Tree, apply_override, expand_shorthands, read_tree, set_value

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,59}$"
REFERENCE = re.compile(r"\{([A-Za-z0-9][A-Za-z0-9._-]*)\}")
"""`{pretrain}` in a text: the run folder of that stage."""


class StageSection(Section):
    """One run of a pipeline, named PIPELINE-STAGE."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    config: Path
    """Config file, relative to the pipeline's file."""
    overrides: dict[str, Any] = {}
    """Keys that this stage sets, `{train.steps: 100}`; `{NAME}` in a text is the run folder of that stage."""
    after: list[str] | None = None
    """Stages above this one that must have finished first. Left out: the one above it."""


class PipelineSection(Section):
    """Stages in order. A stage starts from the weights of the first stage that it comes after, unless it or
    its config sets `train.init_from`."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    stages: Annotated[list[StageSection], Field(min_length=1)]


class PipelineFile(Section):
    pipeline: PipelineSection


@dataclass(frozen=True)
class Stage:
    name: str
    config: Config
    after: tuple[str, ...]


@dataclass(frozen=True)
class Pipeline:
    name: str
    stages: tuple[Stage, ...]
    """No stage comes after one that stands behind it."""


def is_pipeline(path: Path) -> bool:
    """Whether the file describes a pipeline rather than a run.

    Raises:
        InputError: it cannot be read.
    """
    return "pipeline" in read_tree(path)


def load_pipeline(path: Path, overrides: Sequence[str] = ()) -> Pipeline:
    """Read and check all stages; `overrides` hold for every one of them.

    Raises:
        InputError: with every problem of every stage.
    """
    try:
        section = PipelineFile.model_validate(read_tree(path)).pipeline
    except ValidationError as error:
        raise InputError([as_problem(details, PipelineFile) for details in error.errors()]) from None
    problems = list(_check_order(section))
    if problems:
        raise InputError(problems)
    stages: dict[str, Stage] = {}
    for stage in section.stages:
        after = _after(section, stage)
        config, found = _load_stage(path, section.name, stage, overrides, after, stages)
        problems += [
            Problem(f"{stage.name}: {problem.key}", problem.value, problem.message) for problem in found
        ]
        if config is not None:
            stages[stage.name] = Stage(stage.name, config, after)
    problems += _check_roots(list(stages.values()))
    if problems:
        raise InputError(problems)
    return Pipeline(section.name, tuple(stages.values()))


def _check_order(section: PipelineSection) -> Iterator[Problem]:
    above: list[str] = []
    for place, stage in enumerate(section.stages):
        key = f"pipeline.stages.{place}"
        if stage.name in above:
            yield Problem(f"{key}.name", stage.name, "is the name of a stage above; give this one another")
        for name in stage.after or []:
            if name not in above:
                message = f"{nearest(name, above, 'stage')} A stage comes after stages above it"
                yield Problem(f"{key}.after", name, message)
        above.append(stage.name)


def _after(section: PipelineSection, stage: StageSection) -> tuple[str, ...]:
    if stage.after is not None:
        return tuple(stage.after)
    place = section.stages.index(stage)
    return (section.stages[place - 1].name,) if place else ()


def _load_stage(
    path: Path,
    pipeline: str,
    stage: StageSection,
    overrides: Sequence[str],
    after: tuple[str, ...],
    above: Mapping[str, Stage],
) -> tuple[Config | None, list[Problem]]:
    try:
        tree = expand_shorthands(read_tree(path.parent / stage.config))
    except InputError as error:
        return None, error.problems
    folders = {name: str(known.config.run_folder) for name, known in above.items()}
    problems: list[Problem] = []
    for key, value in stage.overrides.items():
        problems += _check_references(key, value, folders)
        set_value(tree, key, _filled_in(value, folders))
    problems += [problem for override in overrides if (problem := apply_override(tree, override))]
    named = [
        key
        for key in (*stage.overrides, *(text.partition("=")[0] for text in overrides))
        if key == "run.name"
    ]
    if named:
        problems.append(Problem("run.name", "", "is PIPELINE-STAGE for each stage; change pipeline.name"))
    if tree.get("sweep"):
        problems.append(Problem("sweep", "{…}", "is several runs, and a stage is one; submit it by itself"))
        tree.pop("sweep")
    set_value(tree, "run.name", f"{pipeline}-{stage.name}")
    if after and after[0] in folders and "init_from" not in cast(Tree, tree.get("train") or {}):
        set_value(tree, "train.init_from", folders[after[0]])
    config, found = resolve(tree, "")
    return config, problems + found


def _check_references(key: str, value: Any, folders: Mapping[str, str]) -> Iterator[Problem]:
    for text in _texts(value):
        for name in REFERENCE.findall(text):
            if name not in folders:
                yield Problem(key, text, nearest(name, list(folders), "stage above this one"))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        parts = cast(list[Any], value) if isinstance(value, list) else cast(Tree, value).values()
        for part in parts:
            yield from _texts(part)


def _filled_in(value: Any, folders: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return REFERENCE.sub(lambda found: folders.get(found[1], found[0]), value)
    if isinstance(value, list):
        return [_filled_in(part, folders) for part in cast(list[Any], value)]
    if isinstance(value, dict):
        return {key: _filled_in(part, folders) for key, part in cast(Tree, value).items()}
    return value


def _check_roots(stages: Sequence[Stage]) -> Iterator[Problem]:
    roots = {stage.config.run.root for stage in stages}
    if len(roots) > 1:
        message = "differs between stages; their run folders lie side by side: set run.root for all of them"
        yield Problem("run.root", ", ".join(str(root) for root in sorted(roots)), message)
