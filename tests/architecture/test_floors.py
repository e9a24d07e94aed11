"""A file imports its own folder and lower floors only, and nothing imports in a circle."""

from graphlib import CycleError, TopologicalSorter

import pytest

from tests.architecture.sources import FLOORS, SOURCES, TOP, Source, folder_of, own_module


def forbidden_imports(source: Source) -> list[str]:
    """What `source` imports from its own floor's other folders or from above."""
    floor = FLOORS[source.folder]
    found: list[str] = []
    for line, name in source.imports:
        folder = folder_of(name)
        if folder is None or folder == source.folder or floor == FLOORS[folder] == TOP:
            continue
        if FLOORS[folder] >= floor and folder != "llmscale":
            found.append(f"{source.module}:{line} (floor {floor}) imports {name} (floor {FLOORS[folder]})")
    return found


def circle(imports: dict[str, set[str]]) -> list[str]:
    """The modules of a circle in the import graph, empty where there is none."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_every_folder_has_a_floor() -> None:
    assert {source.folder for source in SOURCES} - set(FLOORS) == set()


def test_imports_go_down() -> None:
    assert [line for source in SOURCES for line in forbidden_imports(source)] == []


def test_no_import_circles() -> None:
    modules = {source.module for source in SOURCES}
    graph = {
        source.module: {own for _, name in source.imports if (own := own_module(name, modules))}
        - {source.module}
        for source in SOURCES
    }
    assert circle(graph) == []


def test_imports_are_absolute() -> None:
    relative = [
        f"{source.module}: from {'.' * node.level}{node.module or ''}"
        for source in SOURCES
        for node in source.import_froms
        if node.level
    ]
    assert relative == []


@pytest.mark.parametrize(
    ("module", "statement", "forbidden"),
    [
        ("llmscale.config.planted", "import llmscale.parallel.layout", True),
        ("llmscale.model.planted", "from llmscale.data import batch", True),
        ("llmscale.model.planted", "from llmscale.parallel.layout import Layout", False),
        ("llmscale.train.planted", "def f():\n    from llmscale.cli import main", True),
        ("llmscale.commands.planted", "from llmscale.run import pretrain", False),
    ],
)
def test_the_rule_sees_planted_imports(tmp_path, module: str, statement: str, forbidden: bool) -> None:
    path = tmp_path / "planted.py"
    path.write_text(statement)
    assert bool(forbidden_imports(Source(module, path))) is forbidden


def test_the_rule_sees_a_planted_circle() -> None:
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"a"}})) == {"a", "b", "c"}
