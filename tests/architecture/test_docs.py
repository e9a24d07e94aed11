"""The pages say what is so: files they name exist, links lead somewhere, the reference is the schema's."""

import re
import shlex
from pathlib import Path

import pytest

from llmscale.cli import COMMANDS
from llmscale.config.load import load_config
from llmscale.config.reference import reference
from tests.architecture.sources import REPOSITORY

PAGES = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md")])

MADE_LATER = ("runs/", "demo/", "my/", "dist/")
"""Where paths in examples point that a run, the demo or the reader makes."""

CODE_PATH = re.compile(r"`((?:[\w.-]+/)+[\w.-]*\.(?:py|ya?ml|md|toml|txt|sh|svg|png))`")
COMMAND = re.compile(r"(?:^|`)(?:\$ )?llmscale ([a-z]+)", re.MULTILINE)
TRAIN = re.compile(r"^llmscale (?:train|plan) (configs/\S+)((?: (?:'[^']+'|[\w.]+=\S+))*)$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def missing_paths(page: Path) -> list[str]:
    text = page.read_text()
    named = [path for path in CODE_PATH.findall(text) if not path.startswith(MADE_LATER)]
    missing = [path for path in named if not (REPOSITORY / path).exists()]
    links = [link for link in LINK.findall(text) if "://" not in link]
    return missing + [link for link in links if not (page.parent / link).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_exist(page: Path) -> None:
    assert missing_paths(page) == []


def test_a_planted_path_is_missed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("See `llmscale/nowhere/at_all.py` and [this](gone.md), not `runs/tiny/config.yaml`.")
    assert missing_paths(page) == ["llmscale/nowhere/at_all.py", "gone.md"]


def test_configuration_reference_is_current() -> None:
    assert (REPOSITORY / "docs/configuration.md").read_text() == reference(), "run `make docs`"


def test_pages_name_no_place_of_one_machine() -> None:
    places = re.compile(r"(?<![\w.])/(?:home|root|work|Users|tmp)/")
    assert [page.name for page in PAGES if places.search(page.read_text())] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_commands_exist(page: Path) -> None:
    assert set(COMMAND.findall(page.read_text())) - set(COMMANDS) == set()


EXAMPLES = [(page.name, *match.groups()) for page in PAGES for match in TRAIN.finditer(page.read_text())]


@pytest.mark.parametrize(("page", "config", "overrides"), EXAMPLES)
def test_examples_are_valid_configs(page: str, config: str, overrides: str) -> None:
    load_config(REPOSITORY / config, shlex.split(overrides))


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 3
