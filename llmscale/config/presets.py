"""Files of `configs/` whose fields stand wherever a config says nothing: model presets, cluster profiles."""

from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, cast

import yaml

from llmscale.config.cluster import KINDS
from llmscale.config.nearest import nearest
from llmscale.config.problems import InputError, Problem
from llmscale.config.schema import ModelSection
from llmscale.config.yaml_text import parse_yaml

Tree = dict[str, Any]

REPOSITORY_CONFIGS = Path(__file__).parents[2] / "configs"
INSTALLED_CONFIGS = Path(__file__).parents[1] / "configs"


def configs_folder() -> Path:
    """The shipped `configs/`: beside the package in a checkout, inside it in a wheel."""
    return REPOSITORY_CONFIGS if REPOSITORY_CONFIGS.is_dir() else INSTALLED_CONFIGS


def merge_presets(tree: Tree) -> list[Problem]:
    """Put the fields of `model.preset` and `cluster.profile` into `tree`; tells which are not there."""
    return [*_merge_model(tree), *_merge_profile(tree)]


def load_preset(name: str) -> ModelSection:
    """The model of `configs/model/NAME.yaml`."""
    tree: Tree = {"model": {"preset": name}}
    problems = merge_presets(tree)
    if problems:
        raise InputError(problems)
    return ModelSection.model_validate(tree["model"])


def profile_files() -> dict[str, Path]:
    """The shipped cluster profiles by name."""
    return _files("cluster")


def _merge_model(tree: Tree) -> list[Problem]:
    model = tree.get("model")
    if not isinstance(model, dict) or not isinstance(cast(Tree, model).get("preset"), str):
        return []
    model = cast(Tree, model)
    presets, name = _files("model"), model["preset"]
    if name not in presets:
        return [Problem("model.preset", name, nearest(name, list(presets), "preset"))]
    tree["model"] = {**cast(Tree, _read(presets[name])), **model}
    return []


def _merge_profile(tree: Tree) -> list[Problem]:
    cluster = tree.get("cluster")
    if not isinstance(cluster, dict) or not isinstance(cast(Tree, cluster).get("profile"), str):
        return []
    cluster = cast(Tree, cluster)
    fields, message = _profile_fields(cluster["profile"])
    if message:
        return [Problem("cluster.profile", cluster["profile"], message)]
    tree["cluster"] = _overlaid(fields, cluster)
    return []


def _profile_fields(name: str) -> tuple[Tree, str]:
    """The fields of a profile, or what is wrong with it."""
    profiles = profile_files()
    is_path = "/" in name or name.endswith((".yaml", ".yml"))
    if not is_path and name not in profiles:
        close = get_close_matches(name, [*KINDS, *profiles], 1, 0.5)
        hint = f"did you mean {close[0]}? " if close else ""
        kinds, names = ", ".join(KINDS), ", ".join(profiles)
        return {}, f"unknown kind or profile; {hint}kinds: {kinds}; profiles: {names}, or the path of a file"
    path = Path(name).expanduser() if is_path else profiles[name]
    try:
        fields = _read(path)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        return {}, f"cannot be read: {error}"
    if not isinstance(fields, dict):
        return {}, "must be a mapping of the cluster section's keys, such as `kind: slurm`"
    if "profile" in fields:
        return {}, "names another profile; a profile stands for itself"
    return cast(Tree, fields), ""


def _overlaid(below: Tree, above: Tree) -> Tree:
    """`above` where it says something, `below` elsewhere; mappings in both are taken apart likewise."""
    merged = {**below, **above}
    for key in below.keys() & above.keys():
        if isinstance(below[key], dict) and isinstance(above[key], dict):
            merged[key] = _overlaid(below[key], above[key])
    return merged


def _files(folder: str) -> dict[str, Path]:
    return {file.stem: file for file in sorted((configs_folder() / folder).glob("*.yaml"))}


@cache
def _read(path: Path) -> Any:
    """Parsed once: a sweep asks for the same preset in each of its runs. Callers do not change it."""
    return parse_yaml(path.read_text())
