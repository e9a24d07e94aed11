"""Files stay readable: empty package files, no file too long, every table entry leads somewhere."""

import ast
import importlib
import re

import pytest

from tests.architecture.sources import REPOSITORY, SOURCES

LONGEST = 450

ENTRY = re.compile(r"(llmscale\w*(?:\.\w+)+):(\w+)")


def table_entries() -> list[tuple[str, str]]:
    """Every `"package.module:Name"` string in the sources: how the tables name their implementations."""
    strings = [
        node.value
        for source in SOURCES
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    return sorted({match.groups() for text in strings if (match := ENTRY.fullmatch(text))})


@pytest.mark.parametrize(("module", "name"), table_entries())
def test_table_entries_can_be_imported(module: str, name: str) -> None:
    assert hasattr(importlib.import_module(module), name)


def test_package_files_are_empty() -> None:
    packages = [
        source for source in SOURCES if source.path.name == "__init__.py" and source.module != "llmscale"
    ]
    assert [source.module for source in packages if source.path.read_text().strip()] == []


def test_no_file_is_too_long() -> None:
    paths = [source.path for source in SOURCES] + sorted((REPOSITORY / "tests").rglob("*.py"))
    lengths = {str(path.relative_to(REPOSITORY)): len(path.read_text().splitlines()) for path in paths}
    assert {path: length for path, length in lengths.items() if length > LONGEST} == {}


def test_bare_names_stay_free() -> None:
    """An `__init__.py` here would shadow a package of that name; transformers probes for `kernels`."""
    folders = ("kernels", "launcher", "configs", "slurm", "tests")
    assert [folder for folder in folders if (REPOSITORY / folder / "__init__.py").exists()] == []
